"""One loss for each task type, as (sum, count) so that a task's mean is right over any split.

Each function takes the outputs of a slot's head, the slot's labels (fields of the batch) and
`valid` bool [n], which images count. The loss of a task is the sum of its slots' sums over the sum
of their counts, over the whole global batch. All coordinates are pixel / image size.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, jax.Array]
Loss = Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, jax.Array]]

IGNORE = 255  # mask pixels that are not scored
LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016, arXiv 1512.00567
LANDMARK_SIGMA = 1.0  # cells of the heat map
LANDMARK_DISTANCE_WEIGHT = 10.0
BOX_L1_WEIGHT = 5.0  # against GIoU, as DETR (arXiv 2005.12872)


def segmentation(outputs: Arrays, labels: Arrays, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Soft Dice over the foreground classes plus cross-entropy, a value an image.

    Dice as V-Net (arXiv 1606.04797) with squared terms left out and a smoothing of one pixel; the
    sum of both as nnU-Net (arXiv 1809.10486).

    Args:
        outputs: logits [n, H, W, C], classes bool [C].
        labels: mask uint8 [n, H, W], 255 = ignore.
        valid: bool [n].
    """
    mask = labels["mask"].astype(jnp.int32)
    scored = (mask != IGNORE).astype(jnp.float32)[..., None]
    log_probs = jax.nn.log_softmax(outputs["logits"])
    truth = jax.nn.one_hot(mask, log_probs.shape[-1]) * scored  # ignored pixels: no class
    probs = jnp.exp(log_probs) * scored

    overlap, predicted, true = ((a).sum((1, 2)) for a in (probs * truth, probs, truth))
    dice = 1 - (2 * overlap + 1) / (predicted + true + 1)  # [n, C]
    foreground = outputs["classes"].at[0].set(False)
    dice = jnp.where(foreground, dice, 0).sum(-1) / foreground.sum()

    pixels = jnp.maximum(scored.sum((1, 2, 3)), 1)
    cross_entropy = -(truth * log_probs).sum((1, 2, 3)) / pixels
    return _sum_valid(dice + cross_entropy, valid)


def classification(
    outputs: Arrays, labels: Arrays, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Class-balanced cross-entropy with label smoothing over the task's own classes.

    A value an image, which counts as much as its class_weight says.

    Args:
        outputs: logits [n, C], classes bool [C].
        labels: label int32 [n], and perhaps class_weight float32 [n] (`class_weights`).
        valid: bool [n].
    """
    real = outputs["classes"].astype(jnp.float32)
    truth = jax.nn.one_hot(labels["label"], real.size)
    truth = (1 - LABEL_SMOOTHING) * truth + LABEL_SMOOTHING * real / real.sum()
    log_probs = jnp.where(outputs["classes"], jax.nn.log_softmax(outputs["logits"]), 0)
    values = -(truth * log_probs).sum(-1)
    weight = jnp.where(valid, labels.get("class_weight", 1.0), 0.0)
    return jnp.where(valid, weight * values, 0).sum(), weight.sum()


def class_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """Weights of classes by the effective number of their images (arXiv 1901.05555, eq. 4).

    Args:
        counts: [T, C], training images of each task's classes; 0 where there is no class.
        beta: from 0, all images alike, towards 1, all classes alike: a class's images beyond
            1 / (1 - beta) add nothing to its weight.

    Returns:
        float32 [T, C], whose mean over a task's training images is 1; 0 where there are none.
    """
    effective = (1 - beta ** counts.astype(float)) / (1 - beta)
    weights = np.divide(1, effective, out=np.zeros(counts.shape), where=counts > 0)
    total = (weights * counts).sum(1, keepdims=True)
    scale = np.divide(
        counts.sum(1, keepdims=True), total, out=np.zeros_like(total), where=total > 0
    )
    return (weights * scale).astype(np.float32)


def detection(outputs: Arrays, labels: Arrays, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Focal loss on the centre's heat map plus GIoU and L1 of the boxes near it, a value an image.

    The penalty-reduced focal loss is CenterNet's (arXiv 1904.07850, eq. 1); weighting the boxes by
    the same Gaussian is TTFNet's (arXiv 1909.00700).

    Args:
        outputs: heat logits [n, h, w], boxes [n, h, w, 4] as xyxy.
        labels: box [n, 4] as xyxy.
        valid: bool [n].
    """
    heat, box = outputs["heat"], _known(labels["box"], valid)
    h, w = heat.shape[1:]
    grid = jnp.array([w, h], jnp.float32)
    centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    # At least one cell wide, so that small boxes still have neighbours to learn from.
    near = _gaussian(centre, jnp.maximum(size / 6, 1 / grid), h, w)
    # Not where `near` is largest: compiled twice, it need not equal its own maximum.
    x, y = jnp.clip(centre * grid, 0, grid - 1).astype(jnp.int32).T
    positive = jax.nn.one_hot(y, h)[:, :, None] * jax.nn.one_hot(x, w)[:, None, :]

    probs = jax.nn.sigmoid(heat)
    focal = positive * (1 - probs) ** 2 * jax.nn.log_sigmoid(heat)
    focal += (1 - positive) * (1 - near) ** 4 * probs**2 * jax.nn.log_sigmoid(-heat)
    focal = -focal.sum((1, 2))

    weights = near / near.sum((1, 2), keepdims=True)
    target = jnp.broadcast_to(box[:, None, None], outputs["boxes"].shape)
    distance = jnp.abs(outputs["boxes"] - target).sum(-1)
    overlap = 1 - generalised_iou(outputs["boxes"], target)
    boxes = (weights * (overlap + BOX_L1_WEIGHT * distance)).sum((1, 2))
    return _sum_valid(focal + boxes, valid)


def regression(outputs: Arrays, labels: Arrays, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the heat map with a Gaussian plus the landmark's distance, a value a point.

    The heat map's regularisation is DSNT's (arXiv 1801.07372, section 3.3), with a cross-entropy
    for the divergence. Points that are missing or not valid count nothing.

    Args:
        outputs: heat logits [n, h, w, K], points [n, K, 2] as x, y.
        labels: points [n, K, 2], points_valid bool [n, K]; K may exceed the outputs'.
        valid: bool [n].
    """
    heat = outputs["heat"]
    n, h, w, k = heat.shape
    present = labels["points_valid"][:, :k] & valid[:, None]
    points = _known(labels["points"][:, :k], present)
    sigma = jnp.full(2, LANDMARK_SIGMA) / jnp.array([w, h])
    target = _gaussian(points.reshape(n * k, 2), sigma, h, w).reshape(n, k, h * w)
    target /= jnp.maximum(target.sum(-1, keepdims=True), 1e-6)
    log_probs = jax.nn.log_softmax(jnp.moveaxis(heat, -1, 1).reshape(n, k, h * w))
    divergence = -(target * log_probs).sum(-1)
    distance = jnp.abs(outputs["points"] - points).sum(-1)
    values = divergence + LANDMARK_DISTANCE_WEIGHT * distance
    return _sum_valid(values, present)


LOSSES: dict[str, Loss] = {
    "classification": classification,
    "detection": detection,
    "regression": regression,
    "segmentation": segmentation,
}


def generalised_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """GIoU (arXiv 1902.09630) in [-1, 1] of boxes [..., 4] as xyxy; empty boxes give no NaN."""

    def area(box: jax.Array) -> jax.Array:
        return jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), axis=-1)

    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    inter = area(jnp.concatenate([low, high], axis=-1))
    union = area(a) + area(b) - inter
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([low, high], axis=-1))
    return inter / jnp.maximum(union, 1e-9) - (hull - union) / jnp.maximum(hull, 1e-9)


def _gaussian(centre: jax.Array, sigma: jax.Array, h: int, w: int) -> jax.Array:
    """exp(-d^2 / 2) on a grid [n, h, w] around centres [n, 2], d in units of sigma [n or 1, 2]."""
    x = ((jnp.arange(w) + 0.5) / w - centre[:, :1]) / sigma[..., :1]
    y = ((jnp.arange(h) + 0.5) / h - centre[:, 1:]) / sigma[..., 1:]
    return jnp.exp(-0.5 * x**2)[:, None, :] * jnp.exp(-0.5 * y**2)[:, :, None]


def _known(labels: jax.Array, known: jax.Array) -> jax.Array:
    """Labels [..., d] with those that do not count zeroed: a NaN there would reach the gradient."""
    return jnp.where(known[..., None], labels, 0)


def _sum_valid(values: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    # `where` and not a product: an image that does not count may hold anything, NaN included.
    return jnp.where(valid, values, 0).sum(), valid.sum().astype(jnp.float32)

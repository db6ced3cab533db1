"""Each loss against its formula in plain NumPy, and what must not count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.models import heads
from usfm.objectives import losses
from usfm.tasks import TYPES

N, H, W, CLASSES, POINTS = 4, 6, 5, 4, 3
REAL = np.array([True, True, True, False])  # the last class only pads
VALID = np.array([True, True, False, True])


def examples(kind: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random outputs and labels of a slot."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    match kind:
        case "segmentation":
            mask = rng.integers(0, 3, (N, H, W)).astype(np.uint8)
            mask[0, :2] = mask[3, 4, 1] = losses.IGNORE
            return {"logits": padded(normal(N, H, W, CLASSES)), "classes": REAL}, {"mask": mask}
        case "classification":
            label = np.array([2, 0, 1, 1], np.int32)
            return {"logits": padded(normal(N, CLASSES)), "classes": REAL}, {"label": label}
        case "detection":
            low = rng.uniform(0.1, 0.5, (N, 2))
            box = np.concatenate([low, low + rng.uniform(0.1, 0.45, (N, 2))], -1)
            corners = np.sort(rng.uniform(0, 1, (N, H, W, 2, 2)), axis=-2).reshape(N, H, W, 4)
            outputs = {"heat": normal(N, H, W), "boxes": corners.astype(np.float32)}
            return outputs, {"box": box.astype(np.float32)}
        case _:
            present = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
            outputs = {
                "heat": normal(N, H, W, POINTS),
                "points": rng.uniform(0, 1, (N, POINTS, 2)).astype(np.float32),
            }
            points = rng.uniform(0.1, 0.9, (N, POINTS, 2)).astype(np.float32)
            return outputs, {"points": points, "points_valid": present}


def padded(logits: np.ndarray) -> np.ndarray:
    return np.where(REAL, logits, np.float32(heads.MASKED))


@functools.partial(jax.jit, static_argnums=0)
def loss(kind, outputs, labels, valid=VALID):
    return losses.LOSSES[kind](outputs, labels, jnp.asarray(valid))


def softmax(logits, axis=-1):
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


# ---- The formulas, one image (or point) at a time ----


def segmentation_of(logits, mask):
    probs, scored = softmax(logits.astype(float)), mask != losses.IGNORE
    dice = 0.0
    for c in (1, 2):
        overlap = probs[scored & (mask == c), c].sum()
        total = probs[scored, c].sum() + (scored & (mask == c)).sum()
        dice += (1 - (2 * overlap + 1) / (total + 1)) / 2
    truth = np.take_along_axis(probs, mask[..., None] % 255, -1)[..., 0]
    return dice - np.log(truth[scored]).mean()


def classification_of(logits, label):
    probs = softmax(logits[:3].astype(float))
    truth = np.full(3, losses.LABEL_SMOOTHING / 3)
    truth[label] += 1 - losses.LABEL_SMOOTHING
    return -(truth * np.log(probs)).sum()


def iou_and_hull(a, b):
    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    both = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
    hull = area([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])])
    union = area(a) + area(b) - both
    return both / union, (hull - union) / hull


def detection_of(heat, boxes, box):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    sigma_x = max((box[2] - box[0]) / 6, 1 / W)
    sigma_y = max((box[3] - box[1]) / 6, 1 / H)
    near = np.array([
        [np.exp(-(((j + 0.5) / W - x) ** 2) / 2 / sigma_x**2
                - ((i + 0.5) / H - y) ** 2 / 2 / sigma_y**2) for j in range(W)]
        for i in range(H)
    ])  # fmt: skip
    total = 0.0
    for i in range(H):
        for j in range(W):
            p = 1 / (1 + np.exp(-float(heat[i, j])))
            if (i, j) == (int(y * H), int(x * W)):
                total -= (1 - p) ** 2 * np.log(p)
            else:
                total -= (1 - near[i, j]) ** 4 * p**2 * np.log(1 - p)
            iou, empty = iou_and_hull(boxes[i, j].astype(float), box.astype(float))
            distance = np.abs(boxes[i, j] - box).sum()
            share = near[i, j] / near.sum()
            total += share * (1 - (iou - empty) + losses.BOX_L1_WEIGHT * distance)
    return total


def regression_of(heat, point, truth):
    """One point: heat [H, W]."""
    target = np.array([
        [np.exp(-(((j + 0.5) - truth[0] * W) ** 2 + ((i + 0.5) - truth[1] * H) ** 2)
                / 2 / losses.LANDMARK_SIGMA**2) for j in range(W)]
        for i in range(H)
    ])  # fmt: skip
    log_probs = np.log(softmax(heat.reshape(-1).astype(float)))
    divergence = -(target.reshape(-1) / target.sum() * log_probs).sum()
    return divergence + losses.LANDMARK_DISTANCE_WEIGHT * np.abs(point - truth).sum()


def by_formula(kind, outputs, labels, valid=VALID) -> tuple[float, int]:
    values = []
    for i in np.flatnonzero(valid):
        if kind == "regression":
            values += [
                regression_of(outputs["heat"][i, ..., k], outputs["points"][i, k], point)
                for k, point in enumerate(labels["points"][i])
                if labels["points_valid"][i, k]
            ]
        else:
            formula = {
                "segmentation": lambda i: segmentation_of(outputs["logits"][i], labels["mask"][i]),
                "classification": lambda i: classification_of(
                    outputs["logits"][i], labels["label"][i]
                ),
                "detection": lambda i: detection_of(
                    outputs["heat"][i], outputs["boxes"][i], labels["box"][i]
                ),
            }[kind]
            values.append(formula(i))
    return sum(values), len(values)


@pytest.mark.parametrize("kind", TYPES)
def test_a_loss_is_its_formula(kind):
    outputs, labels = examples(kind)
    total, count = loss(kind, outputs, labels)
    expected, number = by_formula(kind, outputs, labels)
    np.testing.assert_allclose(total, expected, rtol=2e-5)
    assert count == number


@pytest.mark.parametrize("kind", TYPES)
def test_sums_and_counts_add_over_any_split_of_the_images(kind):
    outputs, labels = examples(kind)
    whole = loss(kind, outputs, labels)
    alone = [
        loss(kind, *({k: v if k == "classes" else v[[i]] for k, v in tree.items()}
                     for tree in (outputs, labels)), VALID[[i]])
        for i in range(N)
    ]  # fmt: skip
    np.testing.assert_allclose(np.sum(alone, axis=0), whole, rtol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_a_slot_of_no_valid_image_is_zero_of_zero(kind):
    outputs, labels = examples(kind)
    assert [float(v) for v in loss(kind, outputs, labels, np.zeros(N, bool))] == [0, 0]


@pytest.mark.parametrize("kind", TYPES)
def test_what_does_not_count_changes_neither_the_loss_nor_its_gradient(kind):
    outputs, labels = examples(kind)
    spoilt = {name: value.copy() for name, value in labels.items()}
    # Images that are not valid, and points that are missing, may hold anything as their label.
    for name, value in spoilt.items():
        if name in ("box", "points"):
            value[~VALID] = np.nan
        if name in ("label", "mask"):
            value[~VALID] = 3
    if kind == "regression":
        spoilt["points"][~labels["points_valid"]] = np.nan
    floats = {name: value for name, value in outputs.items() if name != "classes"}

    def value_and_grad(labels):
        def total(floats):
            return loss(kind, outputs | floats, labels)[0]

        return jax.value_and_grad(total)(floats)

    expected, actual = value_and_grad(labels), value_and_grad(spoilt)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    gradient = actual[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for leaf in jax.tree.leaves(gradient):
        assert (leaf[~VALID] == 0).all()
        assert (np.abs(leaf[VALID]).reshape(3, -1).max(-1) > 0).all()


def test_ignored_pixels_and_padded_classes_get_no_gradient():
    outputs, labels = examples("segmentation")

    def total(logits):
        return loss("segmentation", {"logits": logits, "classes": REAL}, labels)[0]

    gradient = jax.grad(total)(jnp.asarray(outputs["logits"]))
    ignored = (labels["mask"] == losses.IGNORE) & VALID[:, None, None]
    assert (gradient[ignored] == 0).all()
    assert (gradient[..., 3] == 0).all()
    assert (gradient[VALID][..., :3][~ignored[VALID]] != 0).all()


def test_an_image_without_a_scored_pixel_adds_nothing_to_the_sum():
    outputs, labels = examples("segmentation")
    labels["mask"][:] = losses.IGNORE
    total, count = loss("segmentation", outputs, labels)
    assert (float(total), float(count)) == (0, 3)


def test_missing_points_get_no_gradient():
    outputs, labels = examples("regression")

    def total(heat, points):
        return loss("regression", {"heat": heat, "points": points}, labels)[0]

    heat, points = jax.grad(total, (0, 1))(outputs["heat"], outputs["points"])
    missing = ~labels["points_valid"]
    assert (np.moveaxis(heat, -1, 1)[missing] == 0).all()
    assert (points[missing] == 0).all()


def test_points_of_a_narrower_head_than_the_batch_are_cut_off():
    outputs, labels = examples("regression")
    narrow = {"heat": outputs["heat"][..., :2], "points": outputs["points"][:, :2]}
    cut = {name: value[:, :2] for name, value in labels.items()}
    np.testing.assert_array_equal(
        loss("regression", narrow, labels), loss("regression", narrow, cut)
    )


# ---- Perfect predictions ----


def test_a_perfect_mask_costs_next_to_nothing():
    _, labels = examples("segmentation")
    logits = padded(20.0 * np.eye(CLASSES, dtype=np.float32)[labels["mask"] % 255])
    total, count = loss("segmentation", {"logits": logits, "classes": REAL}, labels)
    assert total / count < 1e-5


def test_a_perfect_class_costs_the_entropy_of_the_smoothed_truth():
    _, labels = examples("classification")
    truth = np.full((N, 3), losses.LABEL_SMOOTHING / 3)
    truth[np.arange(N), labels["label"]] += 1 - losses.LABEL_SMOOTHING
    logits = padded(np.pad(np.log(truth), ((0, 0), (0, 1))).astype(np.float32))
    total, count = loss("classification", {"logits": logits, "classes": REAL}, labels)
    np.testing.assert_allclose(total / count, -(truth[0] * np.log(truth[0])).sum(), rtol=1e-5)


def test_class_weights_make_a_weighted_mean():
    _, labels = examples("classification")
    logits = np.asarray(jax.random.normal(jax.random.key(0), (N, CLASSES)))
    logits = padded(logits)
    weights = np.linspace(0.5, 2, N, dtype=np.float32)
    outputs = {"logits": logits, "classes": REAL}
    total, count = loss("classification", outputs, {**labels, "class_weight": weights})
    alone = [
        float(loss("classification", outputs, labels, valid=np.arange(N) == i)[0]) for i in range(N)
    ]
    np.testing.assert_allclose(total, (weights * VALID) @ alone, rtol=1e-5)
    np.testing.assert_allclose(count, weights @ VALID, rtol=1e-6)


def test_weights_of_classes_are_by_their_effective_number():
    counts = np.array([[10, 90, 0], [0, 0, 0], [5, 5, 5]])
    weights = losses.class_weights(counts, beta=0.99)
    effective = (1 - 0.99 ** np.array([10, 90])) / 0.01
    np.testing.assert_allclose(
        weights[0, 0] / weights[0, 1], effective[1] / effective[0], rtol=1e-6
    )
    np.testing.assert_allclose((weights * counts).sum(1), [100, 0, 15], rtol=1e-6)
    np.testing.assert_array_equal(weights[1], 0)
    # The two ends: all images alike, and all classes alike.
    np.testing.assert_allclose(losses.class_weights(counts, 0.0)[0], [1, 1, 0])
    np.testing.assert_allclose(losses.class_weights(counts, 1 - 1e-9)[0], [5, 5 / 9, 0], rtol=1e-4)


def test_a_perfect_box_costs_next_to_nothing():
    _, labels = examples("detection")
    centre = (labels["box"][:, :2] + labels["box"][:, 2:]) / 2
    column, row = (centre * [W, H]).astype(int).T
    heat = np.full((N, H, W), -20, np.float32)
    heat[np.arange(N), row, column] = 20
    boxes = np.broadcast_to(labels["box"][:, None, None], (N, H, W, 4))
    total, count = loss("detection", {"heat": heat, "boxes": boxes}, labels)
    assert total / count < 1e-5


def test_perfect_points_cost_the_entropy_of_their_gaussian():
    h, w = 40, 30
    points = np.array([[[0.5, 0.4]]], np.float32)
    y, x = np.mgrid[:h, :w] + 0.5
    heat = -((x - points[0, 0, 0] * w) ** 2 + (y - points[0, 0, 1] * h) ** 2) / 2
    outputs = heads.regression(jnp.asarray(heat)[None, ..., None], jnp.ones(1, bool))
    labels = {"points": points, "points_valid": np.ones((1, 1), bool)}
    total, count = loss("regression", outputs, labels, np.ones(1, bool))
    # Of a normal distribution in the plane of deviation 1, in nats.
    np.testing.assert_allclose(total / count, 1 + np.log(2 * np.pi), rtol=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),
        ([0, 0, 1, 1], [2, 0, 3, 1], -1 / 3),
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], 0),  # both empty
        ([0.9, 0, 0.1, 1], [0, 0, 1, 1], 0),  # inverted: empty
    ],
)
def test_generalised_iou(a, b, expected):
    a, b = (jnp.array(box, jnp.float32) for box in (a, b))
    np.testing.assert_allclose(losses.generalised_iou(a, b), expected, atol=1e-6)
    assert jnp.isfinite(jax.grad(losses.generalised_iou)(a, b)).all()

"""Test-time augmentation: an image is looked at several times, and the answers are averaged.

A view is the image at another size, or mirrored where its task allows that. Its outputs (see
usfm/models/heads.py) are brought back to the image before they are averaged, and the average has
the form of the outputs of one view, so that nothing after it knows how many there were.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from usfm.models.dinov3 import PATCH

Outputs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Views:
    """How often an image is looked at.

    Attributes:
        scales: of each view's size, as a multiple of the model's image size.
        flip: every view also mirrored, left to right, for tasks whose `flip_ok` is set.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of each scale, in whole patches."""
        return tuple(
            (_whole(image_size[0] * scale), _whole(image_size[1] * scale)) for scale in self.scales
        )


ONE_VIEW = Views()


def mirrored(kind: str, outputs: Outputs) -> Outputs:
    """The outputs for a mirrored image as those for the image itself.

    Args:
        kind: type of the task.
        outputs: logits [..., H, W, C] of segmentation, or [..., C] of classification; heat
            [..., h, w] and boxes [..., h, w, 4]; or points [..., K, 2].
    """
    match kind:
        case "segmentation":
            return {"logits": jnp.flip(outputs["logits"], -2)}
        case "detection":
            x0, y0, x1, y1 = jnp.moveaxis(jnp.flip(outputs["boxes"], -2), -1, 0)
            boxes = jnp.stack([1 - x1, y0, 1 - x0, y1], axis=-1)
            return {"heat": jnp.flip(outputs["heat"], -1), "boxes": boxes}
        case "regression":
            x, y = jnp.moveaxis(outputs["points"], -1, 0)
            return {"points": jnp.stack([1 - x, y], axis=-1)}
        case _:
            return outputs


def averaged(kind: str, views: Sequence[Outputs]) -> Outputs:
    """The outputs whose probabilities, boxes or points are the mean of those of the views.

    Args:
        kind: type of the task.
        views: outputs as `mirrored` takes them; maps of other sizes are resized to the first's.

    Returns:
        Outputs of the first view's shapes. Logits are logarithms of the mean probability: their
        differences between pixels mean nothing, those between classes are what one view's are.
    """
    match kind:
        case "segmentation":
            logs = [jax.nn.log_softmax(view["logits"]) for view in views]
            return {"logits": _log_mean([_resized(log, logs[0].shape) for log in logs])}
        case "classification":
            return {"logits": _log_mean([jax.nn.log_softmax(view["logits"]) for view in views])}
        case "detection":
            heat = [_resized(view["heat"][..., None], views[0]["heat"].shape) for view in views]
            there = _log_mean([jax.nn.log_sigmoid(each) for each in heat])
            absent = _log_mean([jax.nn.log_sigmoid(-each) for each in heat])
            boxes = [_resized(view["boxes"], views[0]["boxes"].shape) for view in views]
            return {"heat": there - absent, "boxes": jnp.stack(boxes).mean(axis=0)}
        case _:
            return {"points": jnp.stack([view["points"] for view in views]).mean(axis=0)}


def _log_mean(logs: Sequence[jax.Array]) -> jax.Array:
    """log(mean(exp(logs))) over the views; finite where padded classes are."""
    return jax.nn.logsumexp(jnp.stack(logs), axis=0) - jnp.log(len(logs))


def _resized(maps: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[S, n, H, W, C] to the height and width of `shape`, and to all of it."""
    size = (*maps.shape[:2], *shape[2:4], maps.shape[4])
    return jax.image.resize(maps, size, "bilinear").reshape(shape)


def _whole(side: float) -> int:
    return max(1, round(side / PATCH)) * PATCH

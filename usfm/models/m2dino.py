"""M2DINO (arXiv 2603.18123): one encoder, a decoder for each task type, a head for each task.

The model is a set of pure functions over one nested dict of parameters:

    encoder            shared by all tasks
    decoders/TYPE      shared by the tasks of a type
    heads/TYPE         one row a task of that type, on a leading axis
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from usfm.models import heads
from usfm.models.dinov3 import PATCH, VARIANTS, DINOv3, Variant
from usfm.models.functional import Params, init, init_stacked, merge, structure
from usfm.tasks import TYPES, Task


@dataclasses.dataclass(frozen=True)
class M2DINO:
    """The model of a set of tasks.

    Attributes:
        tasks: sorted by id; `task` arguments below index into them.
        variant: a name of dinov3.VARIANTS.
        decoder_width: channels of the dense decoders.
        rope_rescale: in training, patch coordinates are multiplied by one log-uniform factor in
            [1 / rope_rescale, rope_rescale]; 1 turns that off.
        dtype: of activations and products; parameters, norms and outputs are float32.
    """

    tasks: tuple[Task, ...]
    variant: str
    decoder_width: int
    rope_rescale: float = 2.0
    dtype: str = "float32"

    @property
    def types(self) -> tuple[str, ...]:
        """The task types present, in the order of a batch's slots."""
        return tuple(t for t in TYPES if any(task.type == t for task in self.tasks))

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        encoder_key, *type_keys = jax.random.split(key, 1 + len(TYPES))
        params: Params = {"encoder": init(self._make_encoder, encoder_key)}
        params["decoders"], params["heads"] = {}, {}
        for kind, type_key in zip(TYPES, type_keys, strict=True):
            if kind in self.types:
                decoder_key, head_key = jax.random.split(type_key)
                params["decoders"][kind] = init(self._make_decoder(kind), decoder_key)
                params["heads"][kind] = init_stacked(
                    self._make_head(kind), len(self._of_type(kind)), head_key
                )
        return params

    def encode(
        self, params: Params, image: jax.Array, task: jax.Array, *, train: bool, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes the images of one slot.

        Args:
            params: of which "encoder" is read.
            image: float32 [n, H, W, 3], normalised.
            task: int32 [], what the slot asks.
            train: draws the training-time augmentations of the encoder from `key`.
            key: unused unless `train`.

        Returns:
            maps [4, n, h, w, D] of the tapped layers, and auxiliary losses by name.
        """
        del task  # Read by the routers of mixture-of-experts layers.
        scale = 1.0
        if train and self.rope_rescale != 1:
            limit = np.log(self.rope_rescale)
            scale = jnp.exp(jax.random.uniform(key, minval=-limit, maxval=limit))
        encoder: DINOv3 = merge(self._encoder_structure, params["encoder"])
        _, maps = encoder(image.astype(self.dtype), self._numbers.taps, scale)
        return maps.astype(self.dtype), {}

    def decode(self, params: Params, kind: str, maps: jax.Array, task: jax.Array) -> heads.Outputs:
        """Answers of one slot, as heads.py describes them for each type.

        Args:
            params: of which "decoders" and "heads" are read.
            kind: the slot's task type.
            maps: [4, n, h, w, D].
            task: int32 [], a task of that type.
        """
        local = jnp.asarray(self._local_index)[task]
        row = jax.tree.map(lambda table: table[local], params["heads"][kind])
        features = merge(self._decoder_structure[kind], params["decoders"][kind])(maps)
        raw = merge(self._head_structure[kind], row)(features)
        real = jnp.arange(raw.shape[-1]) < jnp.asarray([t.size for t in self.tasks])[task]
        match kind:
            case "segmentation":
                size = (maps.shape[2] * PATCH, maps.shape[3] * PATCH)
                return heads.segmentation(raw, real, size)
            case "classification":
                return heads.classification(raw, real)
            case "detection":
                return heads.detection(raw)
            case _:
                return heads.regression(raw, real)

    def _of_type(self, kind: str) -> Sequence[Task]:
        return [task for task in self.tasks if task.type == kind]

    @property
    def _numbers(self) -> Variant:
        return VARIANTS[self.variant]

    @functools.cached_property
    def _local_index(self) -> np.ndarray:
        """int32 [T]: each task's row in the stacked heads of its type."""
        return np.array([self._of_type(t.type).index(t) for t in self.tasks], np.int32)

    def _make_encoder(self, rngs: nnx.Rngs) -> DINOv3:
        return DINOv3(self._numbers, jnp.dtype(self.dtype), rngs)

    def _make_decoder(self, kind: str) -> Callable[[nnx.Rngs], heads.Decoder]:
        width, dtype = self._numbers.width, jnp.dtype(self.dtype)
        match kind:
            case "segmentation":
                return lambda r: heads.SegmentationDecoder(width, self.decoder_width, dtype, r)
            case "classification":
                heads_ = self._numbers.heads
                return lambda r: heads.ClassificationDecoder(width, heads_, dtype, r)
            case "detection":
                return lambda r: heads.DetectionDecoder(width, self.decoder_width, dtype, r)
            case _:
                return lambda r: heads.RegressionDecoder(width, self.decoder_width, dtype, r)

    def _make_head(self, kind: str) -> Callable[[nnx.Rngs], nnx.Module]:
        """One linear layer, padded to the widest task of the type."""
        inputs = self._head_inputs[kind]
        dtype = jnp.dtype(self.dtype)
        if kind == "detection":
            return lambda rngs: nnx.Linear(
                inputs, 5, bias_init=heads.detection_bias, dtype=dtype, rngs=rngs
            )
        outputs = max(t.size for t in self._of_type(kind))
        # A heat map's softmax does not see a bias: its gradient would be rounding, which Adam
        # makes steps of.
        bias = kind != "regression"
        return lambda rngs: nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, rngs=rngs)

    @functools.cached_property
    def _head_inputs(self) -> dict[str, int]:
        return {
            kind: nnx.eval_shape(lambda k=kind: self._make_decoder(k)(nnx.Rngs(0))).head_inputs
            for kind in self.types
        }

    @functools.cached_property
    def _encoder_structure(self) -> nnx.GraphDef:
        return structure(self._make_encoder)

    @functools.cached_property
    def _decoder_structure(self) -> dict[str, nnx.GraphDef]:
        return {kind: structure(self._make_decoder(kind)) for kind in self.types}

    @functools.cached_property
    def _head_structure(self) -> dict[str, nnx.GraphDef]:
        return {kind: structure(self._make_head(kind)) for kind in self.types}

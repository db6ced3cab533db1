"""M2DINO (arXiv 2603.18123): one encoder, a decoder for each task type, a head for each task.

The model is a set of pure functions over one nested dict of parameters:

    encoder            shared by all tasks
    task_embedding     one row a task; what the routers of mixture-of-experts layers read of it
    decoders/TYPE      shared by the tasks of a type
    heads/TYPE         one row a task of that type, on a leading axis
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from usfm import mesh
from usfm.models import heads
from usfm.models.dinov3 import PATCH, VARIANTS, DINOv3, Variant, drop_path, layers_of_stacks
from usfm.models.functional import Params, init, merge, shapes, structure
from usfm.models.lora import NO_LORA, LoRA
from usfm.models.moe import Mixture, upcycle
from usfm.tasks import TYPES, Task


@dataclasses.dataclass(frozen=True, eq=False)  # hashable, for jit's static arguments
class M2DINO:
    """The model of a set of tasks.

    Attributes:
        tasks: sorted by id; `task` arguments below index into them.
        variant: a name of dinov3.VARIANTS.
        decoder_width: channels of the decoder of each task type.
        mixture: of the mixture-of-experts layers, or None.
        lora: low-rank updates of the encoder.
        rope_rescale: in training, patch coordinates are multiplied by one log-uniform factor in
            [1 / rope_rescale, rope_rescale]; 1 turns that off.
        drop_path: in training, the probability that a branch of a layer is left out of an image.
        remat: what the encoder's backward pass computes again, a name of functional.REMAT.
        dtype: of activations and products; parameters, norms and outputs are float32.
    """

    tasks: tuple[Task, ...]
    variant: str
    decoder_width: Mapping[str, int]
    mixture: Mixture | None = None
    lora: LoRA = NO_LORA
    rope_rescale: float = 2.0
    drop_path: float = 0.0
    remat: str = "none"
    dtype: str = "float32"

    @property
    def types(self) -> tuple[str, ...]:
        """The task types present, in the order of a batch's slots."""
        return tuple(t for t in TYPES if any(task.type == t for task in self.tasks))

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        encoder_key, embedding_key, *type_keys = jax.random.split(key, 2 + len(TYPES))
        params: Params = {"encoder": init(self._make_encoder, encoder_key)}
        if self.mixture is not None:
            shape = (len(self.tasks), self._numbers.width)
            params["task_embedding"] = jax.random.normal(embedding_key, shape)
        params["decoders"], params["heads"] = {}, {}
        for kind, type_key in zip(TYPES, type_keys, strict=True):
            if kind in self.types:
                decoder_key, head_key = jax.random.split(type_key)
                params["decoders"][kind] = init(self._make_decoder(kind), decoder_key)
                # Alike for all tasks: else the gradients of two that ask the same question would
                # differ by what their heads happen to be, and stay so for hundreds of steps.
                head, count = init(self._make_head(kind), head_key), len(self._of_type(kind))
                params["heads"][kind] = jax.tree.map(
                    lambda leaf, count=count: jnp.tile(leaf, (count, *[1] * leaf.ndim)), head
                )
        return params

    def with_encoder(self, params: Params, encoder: Params) -> Params:
        """The parameters with a pretrained encoder in place of the fresh one.

        Its layers are shared out among the stacks, and each expert starts as a copy of its layer's
        feed-forward network. Routers and low-rank updates
        stay as they are.

        Args:
            params: as `init` makes them.
            encoder: of the plain variant, NumPy arrays, as weights.read returns them.
        """
        fresh, given = params["encoder"], {k: v for k, v in encoder.items() if k != "blocks"}
        for stack, layers in layers_of_stacks(self._numbers, self.mixture).items():
            given[stack] = jax.tree.map(lambda a, of=list(layers): a[of], encoder["blocks"])
            if self.mixture is not None and stack == "moe_blocks":
                given[stack]["mlp"] = upcycle(given[stack]["mlp"], self.mixture.experts)
        return {**params, "encoder": _overlaid(fresh, given)}

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """The layers (0-based) that each stacked part of the parameters holds, by its path."""
        stacks = layers_of_stacks(self._numbers, self.mixture)
        return {f"encoder/{stack}": layers for stack, layers in stacks.items()}

    def encode(
        self, params: Params, image: jax.Array, task: jax.Array, *, train: bool, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes the images of one slot.

        Args:
            params: of which "encoder" and "task_embedding" are read.
            image: float32 [n, H, W, 3], normalised.
            task: int32 [], what the slot asks.
            train: draws the training-time augmentations of the encoder from `key`.
            key: unused unless `train`.

        Returns:
            maps [4, n, h, w, D] of the tapped layers; and what the mixtures say of each image
            (moe.MoE), every array [mixture layers, n, ...], {} where there are none.
        """
        out = self._encode(
            params, image[None], task[None], train=train, key=key[None], capacity=False,
            images=P() if train else None,
        )  # fmt: skip
        return jax.tree.map(lambda leaf: leaf[0], out)

    def features(
        self, params: Params, image: jax.Array, task: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """What the encoder says of images, whatever head would read it.

        Args:
            params: of which "encoder" and "task_embedding" are read.
            image: float32 [n, H, W, 3], normalised.
            task: int32 [], whose embedding the routers of mixtures read. None: the mean of all
                tasks' embeddings, which gives every expert the geometric mean of its gates, since
                a router is linear in the embedding. Without mixtures it makes no difference.

        Returns:
            float32 dense [n, h, w, D], the last layer's patches; cls [n, D], its CLS token; mean
            [n, D], the mean of the patches. All are after the final norm.
        """
        condition = None
        if self.mixture is not None:
            table = params["task_embedding"]
            of_task = table.mean(axis=0) if task is None else table[task]
            condition = jnp.broadcast_to(of_task, (image.shape[0], of_task.shape[-1]))
        encoder: DINOv3 = merge(self._encoder_structure, params["encoder"])
        last = self._numbers.layers - 1
        encoded = encoder(image.astype(self.dtype), (last,), condition=condition)
        dense, cls = encoded.maps[0].astype(jnp.float32), encoded.tokens[:, 0].astype(jnp.float32)
        return {"dense": dense, "cls": cls, "mean": dense.mean(axis=(1, 2))}

    def encode_slots(
        self, params: Params, image: jax.Array, task: jax.Array, *, train: bool, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The same for slots at once, as one batch: all arrays have a leading axis S.

        In training the top-k experts of a mixture have a capacity, for the tokens of all slots
        together: the tokens of one slot ask for the same few experts, those of all slots for all.
        A slot by itself is served without one, at the price of all experts.
        """
        together = P(mesh.SLOTS) if image.shape[0] % mesh.slot_shards() == 0 else None
        return self._encode(
            params, image, task, train=train, key=key, capacity=train, images=together
        )

    def _encode(
        self,
        params: Params,
        image: jax.Array,
        task: jax.Array,
        *,
        train: bool,
        key: jax.Array,
        capacity: bool,
        images: P | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        slots, n = image.shape[:2]
        scale, keep, condition = 1.0, None, None
        if train:
            rope_key, drop_key = jnp.moveaxis(jax.vmap(jax.random.split)(key), 1, 0)
            if self.rope_rescale != 1:
                limit = np.log(self.rope_rescale)
                scale = jnp.exp(
                    jax.vmap(lambda k: jax.random.uniform(k, minval=-limit, maxval=limit))(rope_key)
                )
                scale = jnp.repeat(scale, n)
            if self.drop_path:
                rate, layers = self.drop_path, self._numbers.layers
                keep = jax.vmap(lambda k: drop_path(k, rate, layers, n), out_axes=2)(drop_key)
                keep = keep.reshape(layers, 2, slots * n)
        if self.mixture is not None:
            condition = jnp.repeat(params["task_embedding"][task], n, axis=0)
        encoder: DINOv3 = merge(self._encoder_structure, params["encoder"])
        _, maps, routing = encoder(
            image.reshape(slots * n, *image.shape[2:]).astype(self.dtype),
            self._numbers.taps,
            rope_scale=scale,
            keep=keep,
            condition=condition,
            train=capacity,
            images_lie=images,
        )

        def by_slot(leaf: jax.Array) -> jax.Array:
            """[layers, S * n, ...] to [S, layers, n, ...]."""
            return jnp.moveaxis(leaf.reshape(leaf.shape[0], slots, n, *leaf.shape[2:]), 0, 1)

        return by_slot(maps.astype(self.dtype)), jax.tree.map(by_slot, routing)

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
        return DINOv3(
            self._numbers,
            jnp.dtype(self.dtype),
            rngs,
            mixture=self.mixture,
            lora=self.lora,
            remat=self.remat,
        )

    def _make_decoder(self, kind: str) -> Callable[[nnx.Rngs], heads.Decoder]:
        width, own = self._numbers.width, self.decoder_width[kind]
        make = heads.DECODERS[kind]
        return lambda rngs: make(width, own, jnp.dtype(self.dtype), rngs)

    def _make_head(self, kind: str) -> Callable[[nnx.Rngs], nnx.Module]:
        """One linear layer, padded to the widest task of the type."""
        inputs = self._head_inputs[kind]
        dtype = jnp.dtype(self.dtype)
        # Heads that begin alike make something of the maps that, where tasks have but a number in
        # common, as of classes, has to be unlearned: so they begin near zero. (Not at it: a task
        # without any gradient is left out of a step.) Of landmarks, which tasks are related shows
        # better where they do not.
        start = nnx.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
        if kind == "regression":
            start = nnx.initializers.lecun_normal()
        if kind == "detection":
            return lambda rngs: nnx.Linear(
                inputs, 5, kernel_init=start, bias_init=heads.detection_bias, dtype=dtype, rngs=rngs
            )
        outputs = max(t.size for t in self._of_type(kind))
        # A heat map's softmax does not see a bias: its gradient would be rounding, which Adam
        # makes steps of.
        bias = kind != "regression"
        return lambda rngs: nnx.Linear(
            inputs, outputs, use_bias=bias, kernel_init=start, dtype=dtype, rngs=rngs
        )

    @functools.cached_property
    def _head_inputs(self) -> dict[str, int]:
        return {kind: shapes(self._make_decoder(kind)).head_inputs for kind in self.types}

    @functools.cached_property
    def _encoder_structure(self) -> nnx.GraphDef:
        return structure(self._make_encoder)

    @functools.cached_property
    def _decoder_structure(self) -> dict[str, nnx.GraphDef]:
        return {kind: structure(self._make_decoder(kind)) for kind in self.types}

    @functools.cached_property
    def _head_structure(self) -> dict[str, nnx.GraphDef]:
        return {kind: structure(self._make_head(kind)) for kind in self.types}


def _overlaid(below: Params, above: Params) -> Params:
    """Nested dicts with the leaves of `above` where it has them, and those of `below` elsewhere."""
    return {
        key: (
            value
            if key not in above
            else _overlaid(value, above[key])
            if isinstance(value, dict)
            else above[key]
        )
        for key, value in below.items()
    }

"""Linear layers with a low-rank update beside their kernel (LoRA, arXiv 2106.09685)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from usfm.models.functional import Params
from usfm.models.product import product

_weight = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The low-rank updates of an encoder: W + (alpha / rank) a b.

    Attributes:
        rank: of the updates; 0 = there are none.
        alpha: their strength, kept apart from the rank so that learning rates carry over.
    """

    rank: int = 0
    alpha: float = 16.0

    @property
    def scale(self) -> float:
        """What a @ b is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0


NO_LORA = LoRA()


class Linear(nnx.Linear):
    """A linear layer; with `lora.rank` it also holds lora_a [I, r] and lora_b [r, O], zero."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        lora: LoRA,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ):
        super().__init__(
            inputs, outputs, use_bias=use_bias, kernel_init=_weight, dtype=dtype, rngs=rngs
        )
        self.lora_scale = lora.scale
        if lora.rank:
            draw = nnx.initializers.normal(inputs**-0.5)
            self.lora_a = nnx.Param(draw(rngs.params(), (inputs, lora.rank)))
            self.lora_b = nnx.Param(jnp.zeros((lora.rank, outputs)))

    def __call__(self, inputs: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        """[..., I] to [..., O].

        Args:
            inputs: of any number of rows.
            scale: factor on the outputs, [O]. It goes into the kernel, so that its derivative asks
                for no outputs: none are kept, nor is any cotangent multiplied.
        """
        x, kernel = inputs.astype(self.dtype), (self.kernel[...] * scale).astype(self.dtype)
        y = product(x, kernel)
        if self.bias is not None:
            y = y + (self.bias[...] * scale).astype(self.dtype)
        if self.lora_scale:
            a, b = self.lora_a[...], self.lora_b[...] * (self.lora_scale * scale)
            y = y + product(product(x, a.astype(self.dtype)), b.astype(self.dtype))
        return y


def merged(params: Params, lora: LoRA) -> Params:
    """The same layers without low-rank updates: these are added to the kernels, in float32."""
    if "lora_a" in params:
        rest: dict[str, Any] = {k: v for k, v in params.items() if not k.startswith("lora_")}
        update = jnp.matmul(params["lora_a"], params["lora_b"], precision="highest")
        return {**rest, "kernel": params["kernel"] + lora.scale * update}
    return {k: merged(v, lora) if isinstance(v, dict) else v for k, v in params.items()}

"""How much of the devices' arithmetic a step uses: its model FLOPs utilisation (MFU).

FLOPs are counted from the traced step, 2 for each multiply-add of its matrix products and
convolutions, forward and backward (PaLM, arXiv 2204.02311, appendix B, but counted instead of
estimated). XLA's own cost analysis counts the body of a loop over layers once, so it is not used.
With model.remat, what the backward pass computes again is counted too.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core

# Dense bfloat16 FLOP/s of one JAX device, from the makers' data sheets, by the first name that its
# device_kind begins with.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,  # v6e
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
}


def peak(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None where it is not known."""
    names = (name for name in PEAKS if f"{device_kind} ".startswith(f"{name} "))
    return next((PEAKS[name] for name in names), None)


def flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions of a traced function, over all devices.

    Of branches the dearest counts, and the body of a loop as often as it runs, where that is known.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0
    for equation in inner.eqns:
        params: dict[str, Any] = equation.params
        out: Any = equation.outvars[0].aval if equation.outvars else None
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                left: Any = equation.invars[0].aval
                total += 2 * out.size * math.prod(left.shape[i] for i in contracted)
            case "conv_general_dilated":
                kernel: Any = equation.invars[1].aval
                per_output = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
                # Of an input spread out by zeros, products with these are not needed.
                zeros = math.prod(params["lhs_dilation"])
                total += 2 * out.size * per_output // zeros
            case "scan":
                total += params["length"] * flops(params["jaxpr"])
            case "cond":
                total += max(map(flops, params["branches"]))
            case "shard_map":
                total += params["mesh"].size * flops(params["jaxpr"])
            case _:
                total += sum(map(flops, _inside(params)))
    return total


def _inside(params: dict[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value

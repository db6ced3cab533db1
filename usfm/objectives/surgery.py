"""Gradient surgery: task weights as pure functions of the Gramian of task gradients.

All methods here need the gradients only through G[i, j] = g_i . g_j; the update is
d = sum_i w_i g_i. Tasks that are absent from a step are masked out, never passed as zeros: the
weights of the others are those that the method gives them alone.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from usfm.objectives import solvers

# Each method, with the options it takes and what they are when not given.
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sum": {},
        "mean": {},
        "pcgrad": {"orders": None},
        "cagrad": {"c": 0.4, "norm_eps": 1e-4},
        "mgda": {},
        "imtl_g": {},
        "nash_mtl": {},
        "fairgrad": {"alpha": 2.0},
        "aligned_mtl": {"scale": "min"},
        "upgrad": {"norm_eps": 1e-4, "reg_eps": 1e-4},
        "dualproj": {"norm_eps": 1e-4, "reg_eps": 1e-4},
        "config": {},
    }
)
METHODS = tuple(OPTIONS)


def weights(
    name: str,
    gramian: jax.Array,
    *,
    present: jax.Array | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """The published weights of a method, with TorchJD's defaults.

    Args:
        name: one of METHODS.
        gramian: float [T, T] of the task gradients.
        present: bool [T]; all tasks when not given. Absent tasks get weight 0 and touch nothing.
        key: where `pcgrad` draws its orders from.
        **options: of the method, as OPTIONS names them. `orders`, int32 [T, T - 1], are those of
            pcgrad: row i lists the tasks that gradient i is projected against, one after the other.

    Returns:
        float [T], the task weights w, of the Gramian's type.

    Raises:
        ValueError: an unknown method or option, or pcgrad without key and orders.
    """
    if name not in OPTIONS:
        raise ValueError(f"unknown multi-task method '{name}'; known are {', '.join(METHODS)}")
    if unknown := sorted(set(options) - set(OPTIONS[name])):
        known = ", ".join(OPTIONS[name]) or "none"
        raise ValueError(f"{name} has no option '{unknown[0]}'; its options: {known}")
    present = jnp.ones(gramian.shape[0], bool) if present is None else present
    # Accelerators would round the factors, and a conflict is a matter of sign.
    with jax.default_matmul_precision("highest"):
        return _weights(name, gramian, present, key, {**OPTIONS[name], **options})


def _weights(
    name: str,
    gramian: jax.Array,
    present: jax.Array,
    key: jax.Array | None,
    options: Mapping[str, Any],
) -> jax.Array:
    gramian = jnp.where(present[:, None] & present[None, :], gramian, 0)
    on = present.astype(gramian.dtype)
    mean = on / jnp.maximum(on.sum(), 1)
    moving = present & (jnp.diagonal(gramian) > 0)  # for those that divide by a gradient's length
    match name:
        case "sum":
            return on
        case "mean":
            return mean
        case "pcgrad":
            orders = options["orders"]
            if orders is None:
                if key is None:
                    raise ValueError("pcgrad needs a key, or the orders themselves")
                orders = random_orders(key, gramian.shape[0])
            return _pcgrad(gramian, present, orders)
        case "cagrad":
            return _cagrad(gramian, present, mean, options["c"], options["norm_eps"])
        case "mgda":
            return _mgda(gramian, present)
        case "imtl_g":
            return _imtl_g(gramian, moving)
        case "nash_mtl":
            return _fairgrad(gramian, moving, 1.0)
        case "fairgrad":
            return _fairgrad(gramian, moving, options["alpha"])
        case "aligned_mtl":
            return _aligned_mtl(gramian, present, mean, options["scale"])
        case "upgrad" | "dualproj":
            regular = _normalised(gramian, options["norm_eps"]) + options["reg_eps"] * jnp.diag(on)
            bounds = jnp.diag(mean) if name == "upgrad" else mean[None]
            return jax.vmap(lambda bound: _dual_cone(regular, bound, present))(bounds).sum(0)
        case _:
            return _config(gramian, moving)


def random_orders(key: jax.Array, tasks: int) -> jax.Array:
    """int32 [T, T - 1]: for each task its own random order of the others."""
    others = jnp.arange(tasks - 1)[None, :] + (jnp.arange(tasks - 1) >= jnp.arange(tasks)[:, None])
    return jax.random.permutation(key, others, axis=1, independent=True)


def _pcgrad(gramian: jax.Array, present: jax.Array, orders: jax.Array) -> jax.Array:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1) in coordinates.

    The projected gradient of task i is sum_j c_j g_j: c starts as e_i, and for each j in the
    order, if <c, g_j> = (G c)_j < 0 then c_j -= (G c)_j / G_jj. The projections are on the
    original g_j. Weights are the column sums, so that each is at least 1.
    """
    norms = jnp.diagonal(gramian)

    def project(c: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
        product = gramian[j] @ c
        conflict = (product < 0) & (norms[j] > 0)
        return c.at[j].add(
            jnp.where(conflict, -product / jnp.where(conflict, norms[j], 1), 0)
        ), None

    start = jnp.diag(present.astype(gramian.dtype))
    return jax.vmap(lambda c, order: jax.lax.scan(project, c, order)[0])(start, orders).sum(0)


def _dual_cone(matrix: jax.Array, bound: jax.Array, present: jax.Array) -> jax.Array:
    """Finds argmin v' M v over v >= bound, the projection on the dual cone in coordinates.

    UPGrad projects each u_i e_i by itself (Quinton and Rey 2024, arXiv 2406.16232), DualProj u
    (GEM, Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
    """
    unit, size = scaled(matrix, present)
    slack = solvers.nonnegative(unit, unit @ (size * bound), present)
    return jnp.where(present, bound + slack / size, 0)


def _mgda(gramian: jax.Array, present: jax.Array) -> jax.Array:
    """MGDA (Désidéri 2012; Sener and Koltun, arXiv 1810.04650): argmin w' G w over the simplex.

    The shortest convex combination is, up to its length, argmin 1/2 x' G x - <1, x> over x >= 0.
    """
    unit, size = scaled(gramian, present)
    # Where gradients cancel x would have no end.
    unit = unit + max(1e-8, 8 * _eps(unit)) * jnp.eye(unit.shape[0], dtype=unit.dtype)
    # In units of the smallest gradient, which the shortest combination is no longer than.
    least = jnp.where(present, size, jnp.inf).min()
    x = solvers.nonnegative(unit, -jnp.where(present, least / size, 0), present)
    w = jnp.where(present, x * least / size, 0)
    return w / jnp.maximum(w.sum(), jnp.finfo(w.dtype).tiny)


def _cagrad(
    gramian: jax.Array, present: jax.Array, mean: jax.Array, c: float, norm_eps: float
) -> jax.Array:
    """CAGrad (Liu et al. 2021, arXiv 2110.14048, algorithm 1), not rescaled.

    d = g_0 + c |g_0| / |g_w| g_w with w = argmin <g_0, g_w> + c |g_0| |g_w| over the simplex. As in
    TorchJD, a g_w of no length gives no update.
    """
    gramian = _normalised(gramian, norm_eps)
    unit, size = scaled(gramian, present)
    length = jnp.sqrt(jnp.maximum(mean @ gramian @ mean, 0))
    linear = jnp.where(present, (gramian @ mean) / size, 0)
    x = solvers.towards(unit, linear, c * length, 1 / size, present)
    w = jnp.where(present, x / size, 0)
    norm = jnp.sqrt(jnp.maximum(x @ unit @ x, 0))
    found = norm >= norm_eps
    return jnp.where(found, mean + c * length / jnp.where(found, norm, 1) * w, 0)


def _fairgrad(gramian: jax.Array, present: jax.Array, alpha: float) -> jax.Array:
    """FairGrad (Ban and Ji 2024, arXiv 2402.15638, eq. 4): G a = a ** (-1 / alpha) with a > 0.

    At alpha 1 that is Nash-MTL (Navon et al. 2022, arXiv 2202.01017, eq. 3). The official code of
    the latter divides G by its norm and shortens long updates; the direction is the same.
    """
    unit, size = scaled(gramian, present)
    power = 1 / alpha
    return jnp.where(present, solvers.balanced(unit, size ** (power - 1), power, present) / size, 0)


def _imtl_g(gramian: jax.Array, present: jax.Array) -> jax.Array:
    """IMTL-G (Liu et al. 2021, ICLR, eq. 6): equal projections on all unit gradients, sum 1."""
    unit, size = scaled(gramian, present)
    v = jnp.where(present, _pseudo_solve(unit, present.astype(unit.dtype)) / size, 0)
    total = v.sum()
    found = jnp.abs(total) > 1e-12 * jnp.abs(v).sum()
    return jnp.where(found, v / jnp.where(found, total, 1), 0)


def _config(gramian: jax.Array, present: jax.Array) -> jax.Array:
    """ConFIG (Liu et al. 2024, arXiv 2408.11104): equal cosines, summed projections for length."""
    unit, size = scaled(gramian, present)
    v = _pseudo_solve(unit, present.astype(unit.dtype)) * present
    length = jnp.sqrt(jnp.maximum(v @ unit @ v, 0))
    found = length > _eps(unit)
    direction = jnp.where(found, v / jnp.where(found, length, 1), 0)
    return direction / size * (size * (unit @ direction)).sum()


def _aligned_mtl(gramian: jax.Array, present: jax.Array, mean: jax.Array, scale: str) -> jax.Array:
    """Aligned-MTL (Senushkin et al. 2023, arXiv 2305.19000): gradients made orthogonal and equal.

    w = s V L^(-1/2) V' u over the eigenvalues L that are not rounding; s is the root of the least
    ("min"), of the median, or of the mean ("rmse") of these.
    """
    values, vectors = jnp.linalg.eigh(gramian)
    kept = values > values[-1] * jnp.maximum(present.sum(), 1) * _eps(gramian)
    inverse = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
    among = jnp.where(kept, values, jnp.nan)
    match scale:
        case "min":
            size = jnp.nanmin(among)
        case "median":  # the lower one of two
            size = jnp.sort(among)[jnp.maximum(kept.sum() - 1, 0) // 2]
        case "rmse":
            size = jnp.nanmean(among)
        case _:
            raise ValueError(f"aligned_mtl: scale '{scale}' is not min, median or rmse")
    aligned = jnp.sqrt(size) * (vectors @ (inverse * (vectors.T @ mean)))
    return jnp.where(kept.any(), aligned, mean) * present


def scaled(gramian: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D^-1 G D^-1 with a diagonal of 1 (the identity where absent), and the lengths D [T].

    A gradient that is zero, or rounding beside the largest, counts as short but has a length.
    """
    squares = jnp.diagonal(gramian)
    floor = jnp.maximum(squares.max() * _eps(gramian) ** 3, jnp.finfo(gramian.dtype).tiny * 1e6)
    size = jnp.where(present, jnp.sqrt(jnp.maximum(squares, floor)), 1)
    return gramian / size[:, None] / size[None, :] + jnp.diag(1.0 * ~present), size


def _normalised(gramian: jax.Array, norm_eps: float) -> jax.Array:
    """By its trace; 0 where that is below norm_eps."""
    trace = jnp.trace(gramian)
    return jnp.where(trace < norm_eps, 0, gramian / jnp.maximum(trace, norm_eps))


def _pseudo_solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """The pseudo-inverse of a symmetric matrix, times a vector."""
    values, vectors = jnp.linalg.eigh(matrix)
    kept = values > values[-1] * matrix.shape[0] * _eps(matrix)
    return vectors @ (jnp.where(kept, 1 / jnp.where(kept, values, 1), 0) * (vectors.T @ right))


def _eps(array: jax.Array) -> float:
    return float(jnp.finfo(array.dtype).eps)

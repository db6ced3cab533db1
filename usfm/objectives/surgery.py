"""Gradient surgery: task weights as pure functions of the Gramian of task gradients.

All methods here need the gradients only through G[i, j] = <g_i, g_j>; the update is
d = sum_i w_i g_i. Tasks that are absent from a step are masked out, never passed as zeros.
"""

import jax
import jax.numpy as jnp

METHODS = ("sum", "mean", "pcgrad")


def weights(
    name: str,
    gramian: jax.Array,
    *,
    present: jax.Array | None = None,
    key: jax.Array | None = None,
    orders: jax.Array | None = None,
) -> jax.Array:
    """The published weights of a method.

    Args:
        name: one of METHODS.
        gramian: float32 [T, T] of the task gradients.
        present: bool [T]; all tasks when not given. Absent tasks get weight 0 and touch nothing.
        key: where `pcgrad` draws its orders from.
        orders: int32 [T, T - 1], the orders instead: row i lists the tasks that gradient i is
            projected against, one after the other.

    Returns:
        float32 [T], the task weights w.

    Raises:
        ValueError: an unknown method, or pcgrad without key and orders.
    """
    tasks = gramian.shape[0]
    present = jnp.ones(tasks, bool) if present is None else present
    gramian = jnp.where(present[:, None] & present[None, :], gramian, 0)
    match name:
        case "sum":
            return present.astype(gramian.dtype)
        case "mean":
            return present / jnp.maximum(present.sum(), 1).astype(gramian.dtype)
        case "pcgrad":
            if orders is None:
                if key is None:
                    raise ValueError("pcgrad needs a key, or the orders themselves")
                orders = _orders(key, tasks)
            return _pcgrad(gramian, present, orders)
    raise ValueError(f"unknown multi-task method '{name}'; known are {', '.join(METHODS)}")


def _pcgrad(gramian: jax.Array, present: jax.Array, orders: jax.Array) -> jax.Array:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1) in coordinates.

    The projected gradient of task i is sum_j c_j g_j: c starts as e_i, and for each j in the
    order, if <c, g_j> = (G c)_j < 0 then c_j -= (G c)_j / G_jj. The projections are on the
    original g_j. Weights are the column sums, so that each is at least 1.
    """
    norms = jnp.diagonal(gramian)

    def project(c: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
        product = jnp.vdot(gramian[j], c, precision="highest")
        conflict = (product < 0) & (norms[j] > 0)
        return c.at[j].add(
            jnp.where(conflict, -product / jnp.where(conflict, norms[j], 1), 0)
        ), None

    start = jnp.diag(present.astype(gramian.dtype))
    return jax.vmap(lambda c, order: jax.lax.scan(project, c, order)[0])(start, orders).sum(0)


def _orders(key: jax.Array, tasks: int) -> jax.Array:
    """int32 [T, T - 1]: for each task its own random order of the others."""
    others = jnp.arange(tasks - 1)[None, :] + (jnp.arange(tasks - 1) >= jnp.arange(tasks)[:, None])
    return jax.random.permutation(key, others, axis=1, independent=True)

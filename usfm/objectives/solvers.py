"""Small convex problems over tasks, solved in a fixed number of steps inside a compiled program.

All matrices are symmetric, positive semidefinite and scaled to a diagonal of about 1, so that
float32 serves tasks whose gradients differ by many decades. Tasks that are absent have a row of the
identity and are held at 0.
"""

import jax
import jax.numpy as jnp

STEPS = 25  # of an interior-point method
NEWTON_STEPS = 40
# How far a step goes towards the nearest border, and how much of the gap it leaves.
TO_BORDER, LEFT = 0.99, 0.1


def nonnegative(matrix: jax.Array, linear: jax.Array, present: jax.Array) -> jax.Array:
    """Finds argmin 1/2 x' M x + q' x over x >= 0, by a primal-dual interior-point method.

    What it has found of the active set is then solved exactly (x_i = 0, or (M x + q)_i = 0), and
    kept where that is the better answer.

    Args:
        matrix: M [T, T], positive definite.
        linear: q [T].
        present: bool [T].
    """
    on = present.astype(matrix.dtype)
    count = jnp.maximum(on.sum(), 1)
    linear = linear * on

    def step(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, dual = state
        target = LEFT * (x * dual * on).sum() / count
        residual = matrix @ x + linear - dual
        move = solve(
            matrix + jnp.diag(jnp.where(present, dual / x, 0)),
            jnp.where(present, target / x - dual - residual, 0),
        )
        dual_move = jnp.where(present, (target - dual * move) / x - dual, 0)
        far = jnp.minimum(_room(x, move, present), _room(dual, dual_move, present))
        return x + far * move, dual + far * dual_move

    largest = jnp.abs(linear).max()
    start = jnp.where(largest > 0, largest, 1) * on
    x, dual = jax.lax.fori_loop(0, STEPS, step, (start, start))

    free = present & (x > dual)
    both = free[:, None] & free[None, :]
    inner = jnp.where(both, matrix, jnp.diag(jnp.ones_like(on)))
    exact = jnp.maximum(jnp.where(free, solve(inner, jnp.where(free, -linear, 0)), 0), 0)
    return jnp.where(_gap(matrix, linear, exact, on) <= _gap(matrix, linear, x, on), exact, x * on)


def _gap(matrix: jax.Array, linear: jax.Array, x: jax.Array, on: jax.Array) -> jax.Array:
    """How far a point is from optimal: the largest |min(x, M x + q)|."""
    return jnp.abs(jnp.minimum(x, matrix @ x + linear) * on).max()


def _room(value: jax.Array, move: jax.Array, present: jax.Array) -> jax.Array:
    """How far to go, at most 1, so that a positive value stays so."""
    shrinks = present & (move < 0)
    ratio = jnp.where(shrinks, -value / jnp.where(shrinks, move, 1), jnp.inf)
    return jnp.minimum(1, TO_BORDER * ratio.min())


def towards(
    matrix: jax.Array, linear: jax.Array, radius: jax.Array, scale: jax.Array, present: jax.Array
) -> jax.Array:
    """Finds argmin q' x + r sqrt(x' M x) over x >= 0 with <scale, x> = 1, likewise.

    Args:
        matrix: M [T, T].
        linear: q [T].
        radius: r [].
        scale: positive [T].
        present: bool [T].
    """
    on = present.astype(matrix.dtype)
    count, scale = jnp.maximum(on.sum(), 1), scale * on
    eps = jnp.finfo(on.dtype).eps
    size = jnp.abs(linear * on).max() + radius + eps

    def step(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, dual, level = state
        product = matrix @ x
        norm = jnp.sqrt(jnp.maximum(x @ product, eps * (x @ x)))
        gradient = linear + radius * product / norm
        curvature = radius / norm * (matrix - jnp.outer(product, product) / norm**2)
        # Below the square of rounding, nothing is gained and numbers underflow.
        target = jnp.maximum(LEFT * (x * dual).sum() / count, eps**2 * size / count)
        residual = jnp.where(present, gradient - dual - level * scale, 0)
        right = jnp.where(present, target / x - dual - residual, 0)
        # The curvature along x is 0. What is added there does not matter: <scale, x> is fixed.
        stiff = (radius / norm + eps * size) / (scale @ scale)
        system = curvature * jnp.outer(on, on) + stiff * jnp.outer(scale, scale)
        system = system + jnp.diag(jnp.where(present, dual / x, 1))
        solved = solve(system, jnp.stack([right, scale], axis=1))
        more = (1 - scale @ x - scale @ solved[:, 0]) / jnp.maximum(scale @ solved[:, 1], eps)
        move = solved[:, 0] + more * solved[:, 1]
        dual_move = jnp.where(present, (target - dual * move) / x - dual, 0)
        far = jnp.minimum(_room(x, move, present), _room(dual, dual_move, present))
        return x + far * move, dual + far * dual_move, level + far * more

    x = on / jnp.maximum(scale.sum(), eps)
    x, *_ = jax.lax.fori_loop(0, 2 * STEPS, step, (x, size * on, jnp.zeros_like(size)))
    return x * on


def balanced(matrix: jax.Array, factor: jax.Array, power: float, present: jax.Array) -> jax.Array:
    """Finds x > 0 with (M x)_i = factor_i x_i ** -power, by a damped Newton method.

    It is the minimum of the convex 1/2 x' M x - sum_i factor_i * (integral of x_i ** -power).
    Where the gradients cancel there is none, and x is merely large.

    Args:
        matrix: M [T, T].
        factor: positive [T].
        power: above 0.
        present: bool [T].
    """
    on = present.astype(matrix.dtype)
    matrix = matrix + 4 * jnp.finfo(on.dtype).eps * jnp.eye(on.size, dtype=on.dtype)

    def step(_: int, x: jax.Array) -> jax.Array:
        pull = factor * x**-power
        gradient = jnp.where(present, matrix @ x - pull, 0)
        curvature = matrix + jnp.diag(jnp.where(present, power * pull / x, 0))
        move = -solve(curvature, gradient)
        # Full steps once the Newton decrement is small (self-concordance).
        decrement = jnp.sqrt(jnp.maximum(-(gradient @ move), 0))
        far = jnp.where(decrement < 0.25, 1, 1 / (1 + decrement))
        return x + jnp.minimum(far, _room(x, move, present)) * move

    start = jnp.where(present, factor, 1) ** (1 / (1 + power))
    # Absent tasks stay at 1 so that no power of 0 appears; the matrix does not couple them.
    return jax.lax.fori_loop(0, NEWTON_STEPS, step, start) * on


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """M^-1 right for a positive definite M whose diagonal may be of all sizes; right [T] or [T, k].

    By Cholesky factors of the matrix scaled to a diagonal of 1, to which a few eps are added:
    rounding below zero is no failure.
    """
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(matrix), jnp.finfo(matrix.dtype).tiny))
    unit = matrix * scale[:, None] * scale[None, :]
    unit = unit + 8 * jnp.finfo(matrix.dtype).eps * jnp.eye(unit.shape[0], dtype=matrix.dtype)
    factor = jax.scipy.linalg.cho_factor(unit, lower=True)
    return (jax.scipy.linalg.cho_solve(factor, (right.T * scale).T).T * scale).T

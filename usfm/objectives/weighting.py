"""Task weights that remember, as pairs of pure functions (init, update) like optax's.

A weighting reads a Signal, which holds what a step knows of its tasks, and hands it on with its
weights multiplied into it: losses, Gramian and weights are then those of the weighted losses, so
that weightings compose (chain.py). States are small arrays; they live in the train state and in its
checkpoints. A task that is absent from a step is neither moved nor forgotten.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from usfm.objectives import surgery

State = Any
_ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class Signal:
    """What a step knows of its T tasks.

    Attributes:
        losses: float32 [T], 0 where absent.
        present: bool [T].
        gramian: float32 [T, T] of the task gradients; None where no weighting asks for it.
        weights: float32 [T], the product of those given so far; 1 to begin with, 0 where absent.
        key: randomness of this step.
    """

    losses: jax.Array
    present: jax.Array
    gramian: jax.Array | None
    weights: jax.Array
    key: jax.Array

    def weighted(self, weights: jax.Array) -> "Signal":
        """The signal of the losses times these weights [T]."""
        weights = jnp.where(self.present, weights, 0)
        return dataclasses.replace(
            self,
            losses=self.losses * weights,
            gramian=(
                None if self.gramian is None else self.gramian * weights[:, None] * weights[None, :]
            ),
            weights=self.weights * weights,
        )


def _stateless(tasks: int) -> State:
    return {}


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A multi-task method, or a part of one.

    Attributes:
        update: (signal, state) -> (signal, new state).
        init: number of tasks -> state.
        needs: of the tasks, "nothing" (weights of 1), "present", "losses", "norms" (of gradients,
            by a Gramian of some of the parameters at least), "gramian" or "gradients".
        after: (state, losses before [T], losses after the optimizer's update on the same batch [T],
            present [T]) -> new state; None for those that do not look back.
    """

    update: Callable[[Signal, State], tuple[Signal, State]]
    init: Callable[[int], State] = _stateless
    needs: str = "gramian"
    after: Callable[[State, jax.Array, jax.Array, jax.Array], State] | None = None


def of_gramian(name: str, **options: Any) -> Weighting:
    """A method of surgery.py."""

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        assert signal.gramian is not None
        weights = surgery.weights(
            name, signal.gramian, present=signal.present, key=signal.key, **options
        )
        return signal.weighted(weights), state

    return Weighting(update)


def alike() -> Weighting:
    """All tasks weigh the same: the sum, and the mean."""
    return Weighting(lambda signal, state: (signal, state), needs="nothing")


def graddrop() -> Weighting:
    """Alike too; the gradients are then combined by sign (graddrop.py)."""
    return Weighting(lambda signal, state: (signal, state), needs="gradients")


def static(weights: np.ndarray) -> Weighting:
    """Weights [T] that stay as they are."""
    return Weighting(
        lambda signal, state: (signal.weighted(jnp.asarray(weights)), state), needs="present"
    )


def rlw() -> Weighting:
    """Random weights (Lin et al. 2022, arXiv 2111.10603): the softmax of a normal draw a step."""

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        draw = jax.random.normal(signal.key, signal.losses.shape)
        return signal.weighted(_softmax(draw, signal.present)), state

    return Weighting(update, needs="present")


def dwa(temperature: float = 2.0, window: int = 100) -> Weighting:
    """Dynamic weight average (Liu et al. 2019, arXiv 1803.10704, eq. 7).

    T softmax(r / temperature) with r the ratio of a task's mean losses in the last two windows;
    alike until there are two. The paper's window is an epoch; a batch of many tasks has none.

    Args:
        temperature: high values bring the weights closer together.
        window: steps.
    """

    def init(tasks: int) -> State:
        zeros = jnp.zeros(tasks)
        names = ("sum", "count", "last", "before")
        return {"step": jnp.int32(0), **dict.fromkeys(names, zeros)}

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        known = (state["last"] > 0) & (state["before"] > 0)
        ratio = jnp.where(known, state["last"] / jnp.where(known, state["before"], 1), 1)
        weights = _softmax(ratio / temperature, signal.present) * signal.present.sum()

        total = state["sum"] + jnp.where(signal.present, signal.losses, 0)
        count = state["count"] + signal.present
        step = state["step"] + 1
        full = step % window == 0
        seen = full & (count > 0)  # who was absent keeps the windows it had
        return signal.weighted(weights), {
            "step": step,
            "sum": jnp.where(full, 0, total),
            "count": jnp.where(full, 0, count),
            "last": jnp.where(seen, total / jnp.maximum(count, 1), state["last"]),
            "before": jnp.where(seen, state["last"], state["before"]),
        }

    return Weighting(update, init, needs="losses")


def uncertainty(learning_rate: float = 0.025) -> Weighting:
    """Homoscedastic uncertainty (Kendall et al. 2018, arXiv 1705.07115, eq. 7): exp(-s) / 2.

    s, the log variance of a task, descends exp(-s) L / 2 + s / 2 by an Adam of its own.
    """

    def gradient(s: jax.Array, losses: jax.Array) -> jax.Array:
        return (1 - jnp.exp(-s) * losses) / 2

    return _learned(lambda s: jnp.exp(-s) / 2, gradient, learning_rate)


def imtl_l(learning_rate: float = 0.025) -> Weighting:
    """IMTL-L (Liu et al. 2021, ICLR, eq. 8): exp(s), where s descends exp(s) L - s."""
    return _learned(jnp.exp, lambda s, losses: jnp.exp(s) * losses - 1, learning_rate)


def _learned(
    weights: Callable[[jax.Array], jax.Array],
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
    learning_rate: float,
) -> Weighting:
    """Weights of one learned number a task, used before it moves."""

    def init(tasks: int) -> State:
        return {"s": jnp.zeros(tasks), "adam": _ADAM.init(jnp.zeros(tasks))}

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        slope = gradient(state["s"], signal.losses)
        s, adam = _descend(state["s"], slope, state["adam"], signal.present, learning_rate)
        return signal.weighted(weights(state["s"])), {"s": s, "adam": adam}

    return Weighting(update, init, needs="losses")


def famo(learning_rate: float = 0.025, weight_decay: float = 1e-3) -> Weighting:
    """FAMO (Liu et al. 2023, arXiv 2306.03792, algorithm 1), for losses above 0.

    Weights c z_i / L_i with z = softmax(xi) and c such that they sum to 1. After the optimizer's
    update the losses of the same batch are taken once more, at the price of a forward pass: xi
    descends towards the tasks whose log loss fell least.

    Args:
        learning_rate: of the Adam that moves xi.
        weight_decay: its L2 penalty.
    """

    def init(tasks: int) -> State:
        return {"xi": jnp.zeros(tasks), "adam": _ADAM.init(jnp.zeros(tasks))}

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        shares = _softmax(state["xi"], signal.present) / _positive(signal.losses, signal.present)
        return signal.weighted(shares / shares.sum()), state

    def after(state: State, before: jax.Array, after: jax.Array, present: jax.Array) -> State:
        fell = jnp.log(_positive(before, present)) - jnp.log(_positive(after, present))
        z = _softmax(state["xi"], present)
        slope = z * (fell - z @ fell) + weight_decay * state["xi"]
        xi, adam = _descend(state["xi"], slope, state["adam"], present, learning_rate)
        return {"xi": xi, "adam": adam}

    return Weighting(update, init, needs="losses", after=after)


def gradnorm(alpha: float = 1.5, learning_rate: float = 0.025) -> Weighting:
    """GradNorm (Chen et al. 2018, arXiv 1711.02257, algorithm 1).

    Weighted gradient norms w_i n_i are drawn to mean(w n) r_i ** alpha, with r_i the loss of a task
    in its first loss, over the mean of these among the tasks: w descends the sum of the distances,
    the target held constant, by an Adam of its own, and is brought back to its sum. As in the
    paper, a step uses the weights that the step before has left.

    Args:
        alpha: how strongly slow tasks are favoured; 0 makes all norms alike.
        learning_rate: of the weights.
    """

    def init(tasks: int) -> State:
        ones, zeros = jnp.ones(tasks), jnp.zeros(tasks)
        return {"weights": ones, "first": zeros, "adam": _ADAM.init(ones)}

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        assert signal.gramian is not None
        w, present = state["weights"], signal.present
        losses = _positive(signal.losses, present)
        first = jnp.where(present & (state["first"] == 0), losses, state["first"])
        norms = jnp.sqrt(jnp.diagonal(signal.gramian))
        rate = losses / jnp.where(present, first, 1)
        target = _mean(w * norms, present) * (rate / _mean(rate, present)) ** alpha
        slope = norms * jnp.sign(w * norms - target)
        new, adam = _descend(w, slope, state["adam"], present, learning_rate)
        new = jnp.maximum(new, 1e-3)
        back = _mean(w, present) / _mean(new, present)
        state = {"weights": jnp.where(present, new * back, w), "first": first, "adam": adam}
        return signal.weighted(w), state

    return Weighting(update, init, needs="norms")


def gradvac(beta: float = 0.5) -> Weighting:
    """Gradient vaccine (Wang et al. 2021, arXiv 2010.05874, algorithm 1) in coordinates.

    As PCGrad, but each gradient is turned until its cosine with the others is at least the mean of
    those seen so far. A pair's mean is of the steps that have both.

    Args:
        beta: weight of a new cosine in that mean (TorchJD's and LibMTL's .5).
    """

    def update(signal: Signal, state: State) -> tuple[Signal, State]:
        assert signal.gramian is not None
        present, gramian = signal.present, signal.gramian
        orders = surgery.random_orders(signal.key, present.size)
        with jax.default_matmul_precision("highest"):
            weights, cosines = _vaccinated(gramian, present, state["cosines"], orders, beta)
        return signal.weighted(weights), {"cosines": cosines}

    return Weighting(update, lambda tasks: {"cosines": jnp.zeros((tasks, tasks))})


def _vaccinated(
    gramian: jax.Array, present: jax.Array, cosines: jax.Array, orders: jax.Array, beta: float
) -> tuple[jax.Array, jax.Array]:
    """Weights [T], and the cosines [T, T] that are aimed at from now on.

    The turned gradient of task i is sum_j c_j g_j: c starts as e_i, and where its cosine phi with
    g_j is below the aim psi, c_j grows by |c| (psi sqrt(1 - phi^2) - phi sqrt(1 - psi^2)) /
    (|g_j| sqrt(1 - psi^2)).
    """
    unit, size = surgery.scaled(gramian, present)

    def turn(state: tuple[jax.Array, jax.Array], j: jax.Array) -> Any:
        c, aims = state  # c in units of gradients of length 1
        length = jnp.sqrt(jnp.maximum(c @ unit @ c, 0))
        phi = jnp.clip(unit[j] @ c / jnp.where(length > 0, length, 1), -1, 1)
        aim = aims[j]
        sine, sine_aim = jnp.sqrt(1 - phi**2), jnp.sqrt(jnp.maximum(1 - aim**2, 1e-12))
        more = length * (aim * sine - phi * sine_aim) / sine_aim
        both = present[j] & (length > 0)
        c = c.at[j].add(jnp.where(both & (phi < aim), more, 0))
        return (c, aims.at[j].set(jnp.where(both, (1 - beta) * aim + beta * phi, aim))), None

    start = jnp.diag(jnp.where(present, size, 0))
    (c, aims), _ = jax.vmap(lambda own, aim, order: jax.lax.scan(turn, (own, aim), order))(
        start, cosines, orders
    )
    return jnp.where(present, c.sum(0) / size, 0), aims


def _descend(
    value: jax.Array, slope: jax.Array, adam: State, present: jax.Array, learning_rate: float
) -> tuple[jax.Array, State]:
    """One step of Adam on a number a task."""
    steps, new = _ADAM.update(jnp.where(present, slope, 0), adam)
    held = jax.tree.map(lambda n, o: jnp.where(present, n, o) if n.ndim else n, new, adam)
    return value - learning_rate * jnp.where(present, jnp.asarray(steps), 0), held


def _softmax(values: jax.Array, present: jax.Array) -> jax.Array:
    """Over the tasks present; 0 elsewhere, also where none is."""
    return jnp.nan_to_num(jax.nn.softmax(values, where=present)) * present


def _mean(values: jax.Array, present: jax.Array) -> jax.Array:
    return jnp.where(present, values, 0).sum() / jnp.maximum(present.sum(), 1)


def _positive(losses: jax.Array, present: jax.Array) -> jax.Array:
    """Losses to divide by: 1 where absent."""
    return jnp.where(present, jnp.maximum(losses, 1e-8), 1)

"""What is read from recorded Gramians, against gradients and lookaheads computed one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.study.affinity import affinity

T, STEPS, RATE = 4, 40, 1e-3
RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=(T, 5, 3)).astype(np.float32)
TARGET[1] = TARGET[0] + 0.1 * TARGET[1]  # agrees with task 0
TARGET[2] = -TARGET[0]  # contradicts it


def losses_of(params, images):
    """[T] on each task's own images [T, n, 5]."""
    features = jnp.tanh(images @ params["encoder"])
    answers = features @ params["head"]
    return ((answers - jnp.einsum("tni,tio->tno", images, TARGET)) ** 2).mean((1, 2))


@jax.jit
def observed(params, images):
    """Losses, halves' gradients of them all, and TAG's lookahead affinity by definition."""

    def jacobian(images):
        return jax.vmap(jnp.ravel)(jax.jacobian(lambda p: losses_of(p, images))(params)["encoder"])

    losses, gradients = losses_of(params, images), jacobian(images)
    halves = jacobian(images[:, ::2]), jacobian(images[:, 1::2])

    def ahead(gradient):
        moved = {**params, "encoder": params["encoder"] - RATE * gradient.reshape(5, 8)}
        return 1 - losses_of(moved, images) / losses

    return losses, gradients, (halves[0] * halves[1]).sum(-1), jax.vmap(ahead)(gradients)


@pytest.fixture(scope="module")
def run():
    """A record of STEPS steps of one group, task 3 present in the odd ones, and the lookaheads."""
    params = {
        "encoder": jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32) * 0.3,
        "head": jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32) * 0.3,
    }
    steps = []
    for _ in range(STEPS):
        images = jnp.asarray(RNG.normal(size=(T, 8, 5)), jnp.float32)
        steps.append(jax.device_get(observed(params, images)))
    losses, gradients, norms, ahead = (np.stack(part) for part in zip(*steps, strict=True))
    present = np.ones((STEPS, T), bool)
    present[::2, 3] = False
    gramian = gradients @ gradients.swapaxes(1, 2)
    both = present[:, :, None] & present[:, None, :]
    record = {
        "tasks": np.array(["a", "b", "c", "d"]),
        "groups": np.array(["early", "late"]),
        "step": np.arange(1, STEPS + 1),
        "learning_rate": np.full(STEPS, RATE, np.float32),
        "losses": np.where(present, losses, 0),
        "present": present,
        "gramian": np.stack([np.where(both, gramian, 0) * share for share in (0.25, 0.75)], 1),
        "square_norm": np.stack([np.where(present, norms, np.nan) * s for s in (0.25, 0.75)], 1),
    }
    record |= {f"preconditioned_{n}": 2 * record[n] for n in ("gramian", "square_norm")}
    return record, gradients, ahead


def test_the_lookahead_affinity_is_tags_to_first_order(run):
    record, _, ahead = run
    both = record["present"][:, :, None] & record["present"][:, None, :]
    exact = np.where(both, ahead, 0).sum(0) / both.sum(0)
    found = affinity(record)
    assert np.corrcoef(found.lookahead.ravel(), exact.ravel())[0, 1] > 0.9999
    np.testing.assert_allclose(found.lookahead, exact, rtol=0.05, atol=1e-5)


def test_products_are_means_over_the_steps_with_both(run):
    record, gradients, _ = run
    found = affinity(record)
    assert found.steps.tolist() == [[STEPS] * 3 + [STEPS // 2]] * 3 + [[STEPS // 2] * 4]
    product = np.einsum("sip,sjp->ij", gradients[1::2], gradients[1::2]) / (STEPS / 2)
    np.testing.assert_allclose(found.product[3], product[3], rtol=1e-4)
    np.testing.assert_allclose(found.product, found.product.T, rtol=1e-5)
    assert found.conflicts == (found.product[np.triu_indices(T, 1)] < 0).mean()
    assert found.product[0, 1] > 0 > found.product[0, 2]
    assert (found.product_interval[:3, :3] < np.abs(found.product[:3, :3]))[[0, 0], [1, 2]].all()


def test_norms_without_noise_make_cosines_of_the_mean_gradients(run):
    record, gradients, _ = run
    found = affinity(record)
    mean = gradients.mean(0)
    expected = (mean @ mean.T) / np.outer(*[np.linalg.norm(mean, axis=1)] * 2)
    np.testing.assert_allclose(found.cosine[:3, :3], expected[:3, :3], atol=0.15)
    # The noise of eight images is in the diagonal of the Gramian.
    assert (np.diagonal(found.product) > found.square_norm).all()


def test_groups_and_preconditioned_products_are_asked_for_by_name(run):
    record, *_ = run
    whole, late = affinity(record), affinity(record, group="late", preconditioned=True)
    np.testing.assert_allclose(late.product, 1.5 * whole.product)
    np.testing.assert_allclose(late.square_norm, 1.5 * whole.square_norm)
    with pytest.raises(ValueError, match="'middle' is not in list"):
        affinity(record, group="middle")

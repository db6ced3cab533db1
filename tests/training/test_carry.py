"""A state is taken over by a run of more tasks, or of fewer: each task keeps what is its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usfm.errors import UserError
from usfm.tasks import Task
from usfm.training.carry import carried, told

HEART = Task("heart", "segmentation", num_classes=3)
LUNG = Task("lung", "segmentation", num_classes=2)
BRAIN = Task("brain", "segmentation", num_classes=4)
PLANE = Task("plane", "classification", num_classes=2)


def state_of(tasks, seed):
    """Random arrays as a train state of these tasks has them; a row belongs to a task."""
    rng = np.random.default_rng(seed)

    def params():
        heads = {}
        for kind in ("segmentation", "classification"):
            of_type = [task for task in tasks if task.type == kind]
            if of_type:
                shape = (len(of_type), 5, max(task.size for task in of_type))
                heads[kind] = {
                    "kernel": rng.normal(size=shape),
                    "bias": rng.normal(size=shape[::2]),
                }
        decoders = {kind: {"kernel": rng.normal(size=(5, 5))} for kind in heads}
        return {
            "encoder": {"kernel": rng.normal(size=(6, 6)), "frozen": None},
            "task_embedding": rng.normal(size=(len(tasks), 6)),
            "decoders": decoders,
            "heads": heads,
        }

    size = len(tasks)
    method = {"cosines": rng.normal(size=(size, size)), "s": rng.normal(size=size), "count": seed}
    opt_state = ({"count": seed, "mu": params()},)
    state = {"step": seed, "params": params(), "opt_state": opt_state, "multitask": {"a": method}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)


def head_of(params, tasks, task):
    row = [t for t in tasks if t.type == task.type].index(task)
    return {
        name: array[row][..., : task.size] for name, array in params["heads"][task.type].items()
    }


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ((HEART, LUNG), (BRAIN, HEART, LUNG, PLANE)),  # wider heads, another type
        ((BRAIN, HEART, LUNG, PLANE), (HEART, PLANE)),  # narrower ones
        ((HEART, PLANE), (BRAIN, LUNG, PLANE)),  # none of a type stays
    ],
)
def test_tasks_of_both_keep_what_is_theirs_and_new_ones_are_fresh(before, now):
    old, fresh = state_of(before, 1), state_of(now, 2)
    new = jax.jit(carried, static_argnums=(2, 3))(old, fresh, before, now)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, fresh)
    same = np.testing.assert_array_equal
    same(new["step"], old["step"])
    places = list(enumerate(now))
    params = [state["params"] for state in (new, old, fresh)]
    moments = [state["opt_state"][0]["mu"] for state in (new, old, fresh)]
    for got, was, made in (params, moments):
        same(got["encoder"]["kernel"], was["encoder"]["kernel"])
        for kind, decoder in got["decoders"].items():
            source = was if kind in was["decoders"] else made
            same(decoder["kernel"], source["decoders"][kind]["kernel"])
        for place, task in places:
            kept = task in before
            expected = head_of(was, before, task) if kept else head_of(made, now, task)
            jax.tree.map(same, head_of(got, now, task), expected)
            row = (was, before.index(task)) if kept else (made, place)
            same(got["task_embedding"][place], row[0]["task_embedding"][row[1]])
    got, was, made = (state["multitask"]["a"] for state in (new, old, fresh))
    same(got["count"], was["count"])
    for i, a in places:
        for j, b in places:
            both = a in before and b in before
            expected = was["cosines"][before.index(a), before.index(b)] if both else (
                made["cosines"][i, j]
            )  # fmt: skip
            same(got["cosines"][i, j], expected)
        same(got["s"][i], was["s"][before.index(a)] if a in before else made["s"][i])


def test_what_comes_and_goes_is_told():
    text = told((HEART, LUNG), (HEART, PLANE))
    assert text == "tasks kept: heart; new, with fresh heads: plane; left out: lung"


def test_a_task_of_another_form_is_refused():
    wider = Task("lung", "segmentation", num_classes=5)
    with pytest.raises(UserError, match=r"task .lung. is segmentation of 5 now and was .* of 2"):
        told((HEART, LUNG), (HEART, wider))

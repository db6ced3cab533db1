"""What runs share, and which of their steps record."""

import jax
import numpy as np

from usfm import config as usfm_config
from usfm.tasks import Task
from usfm.training import sharding
from usfm.training.program import make_program
from usfm.training.step import Own

TASKS = (Task("a", "classification", num_classes=2), Task("b", "classification", num_classes=2))


def program(**fields):
    config = usfm_config.debug(usfm_config.base())
    config.update_from_flattened_dict({"model.decoder_width.classification": 8} | fields)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return make_program(config, TASKS, {"classification": 2}, mesh), mesh


def test_every_third_step_records_and_the_others_are_of_one_pass():
    made, mesh = program(**{"multitask.record": True, "multitask.record_every": 3})
    batch = {
        "image": np.zeros((2, 2, 32, 32, 1), np.uint8),
        "task": np.array([0, 1], np.int32),
        "row": np.zeros((2, 2), np.int32),
        "valid": np.ones((2, 2), bool),
        "label": np.zeros((2, 2), np.int32),
    }
    with jax.set_mesh(mesh):
        (_, silent), (_, recorded) = (
            jax.eval_shape(step, made.abstract, batch, Own(np.uint32(0)))
            for step in (made.step, made.recorded_step)
        )
    assert "record" not in silent
    assert "gramian" not in silent
    assert recorded["record"]["gramian"].shape[1:] == (2, 2)
    kinds = [made.step_at(number) is made.recorded_step for number in range(1, 7)]
    assert kinds == [False, False, True, False, False, True]


def test_where_all_steps_are_alike_there_is_one():
    assert len({id(step) for made, _ in (program(), program(**{"multitask.record": True}))
                for step in (made.step, made.recorded_step)}) == 2  # fmt: skip

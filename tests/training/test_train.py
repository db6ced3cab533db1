import functools
import json
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tools import inspect_checkpoint
from usfm import config as usfm_config
from usfm.data.builder import open_store
from usfm.data.folder import read_folder
from usfm.data.mixing import Mix
from usfm.data.pipeline import slot_batches
from usfm.data.source import open_splits, training_rows
from usfm.errors import UserError
from usfm.models import weights
from usfm.models.dinov3 import VARIANTS, DINOv3, Variant
from usfm.models.functional import init
from usfm.objectives import losses
from usfm.restored import restore
from usfm.tasks import Task
from usfm.training import inputs, sharding
from usfm.training import train as train_module
from usfm.training.checkpoint import Checkpoints, tasks_to_meta
from usfm.training.logs import Log, NonFiniteError
from usfm.training.program import make_program
from usfm.training.start import source_of
from usfm.training.state import TrainState
from usfm.training.train import EXIT_TERMINATED, train

BAD = "breast_2cls"


pytestmark = pytest.mark.usefixtures("one_device_mesh")


def start(config, workdir, **options):
    workdir.mkdir(exist_ok=True)
    folder = read_folder(config.data.root, tasks=config.tasks)
    train(config, workdir, folder, open_splits(config, folder), **options)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def batches_of(config) -> list[Any]:
    """The batches of all steps, as the run will see them."""
    folder = read_folder(config.data.root, tasks=config.tasks)
    rows = training_rows(folder, open_splits(config, folder), config.data)
    store = open_store(folder, (32, 32), 1, config.data.cache_dir)
    mix, images = Mix(folder.tasks, config.train.slots), config.train.examples_per_slot
    batches = slot_batches(store, mix, rows, examples_per_slot=images, seed=config.train.seed)
    return [batches[step] for step in range(config.train.steps)]


@pytest.fixture
def broken(make_config, monkeypatch):
    """A run in which the loss of one task is NaN whenever two certain images share a slot.

    Returns its config and the numbers of the steps that are concerned; the first is above 3.
    """
    config = make_config(**{"train.examples_per_slot": 2})
    seen = {}
    for number, batch in enumerate(batches_of(config), start=1):
        for pair in batch["row"][batch["task"] == 0].tolist():
            seen.setdefault(tuple(pair), []).append(number)
    pair, steps = next((pair, steps) for pair, steps in seen.items() if steps[0] > 4)
    classification = losses.classification

    def loss(outputs, labels, valid):
        total, count = classification(outputs, labels, valid)
        hit = (labels["task"] == 0) & (labels["row"] == jnp.array(pair)).all()
        return jnp.where(hit, jnp.nan, total), count

    monkeypatch.setitem(losses.LOSSES, "classification", loss)
    return config, sorted(set(steps))


def test_a_loss_that_is_not_finite_stops_the_run_which_can_go_on_without_it(
    broken, tmp_path, capsys
):
    config, steps = broken
    assert len(steps) < 8
    with pytest.raises(NonFiniteError) as caught:
        start(config, tmp_path)
    good = (steps[0] - 1) // 3 * 3
    assert (caught.value.step, caught.value.tasks) == (steps[0], (BAD,))
    assert str(caught.value).startswith(
        f"step {steps[0]}: not finite in {BAD}; the update was not made. Last good checkpoint: "
        f"{tmp_path}/checkpoints/{good}."
    )
    assert "skip_task" in str(caught.value)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == good
        assert all(np.isfinite(array).all() for array in checkpoints.arrays(good).values())
    assert capsys.readouterr().err.count(BAD) == 0

    config.train.on_nonfinite = "skip_task"
    usfm_config.check_resumable(config, tmp_path)
    start(config, tmp_path)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if line.get(f"left_out/{BAD}") == 1] == steps
    assert all((f"loss/{BAD}" in line) == (line["step"] not in steps) for line in lines)
    assert all("loss/lung_2cls" in line and "left_out/lung_2cls" not in line for line in lines)
    said = capsys.readouterr().err.splitlines()
    assert said.count(f"left out in the last 1 steps, not finite: {BAD} of 1") == len(steps)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert all(np.isfinite(array).all() for array in checkpoints.arrays(12).values())


def test_seconds_become_a_number_of_steps_that_stays(make_config, tmp_path, capsys, monkeypatch):
    timed = train_module._timed

    def five_seconds(*arguments):
        timed(*arguments)
        return 5.0

    monkeypatch.setattr(train_module, "_timed", five_seconds)
    config = make_config(**{"train.seconds": 300.0})
    start(config, tmp_path)
    steps = usfm_config.read(tmp_path / "config.json").train.steps
    assert 2 < steps < 60
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, steps + 1))
    assert f"a step takes 5.000 s: {steps} steps in 300 s" in capsys.readouterr().err

    usfm_config.check_resumable(config, tmp_path)
    before = lines_of(tmp_path)
    start(config, tmp_path)
    said = capsys.readouterr().err
    assert f"going on from step {steps} of {steps}" in said
    assert "a step takes" not in said
    assert lines_of(tmp_path) == before


def test_other_tasks_than_the_run_was_begun_with_are_refused(make_config, tmp_path):
    nothing = TrainState(jnp.int32(1), {"a": jnp.ones(1)}, {}, {})
    begun = tasks_to_meta((Task("breast_2cls", "classification", num_classes=2),))
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, nothing, begun)
    message = "begun on other tasks: .*kept: breast_2cls; new, with fresh heads: lung_2cls"
    with pytest.raises(UserError, match=message):
        start(make_config(), tmp_path)


def test_the_best_checkpoint_is_kept_and_its_score_logged(make_config, tmp_path):
    scores = iter([5.0, 2.0, float("nan")])
    config = make_config(
        **{"checkpoint.best_metric": "mre", "checkpoint.keep": 1, "train.steps": 9}
    )
    start(config, tmp_path, score=lambda params: next(scores))
    logged = {line["step"]: line["val/mre"] for line in lines_of(tmp_path) if "val/mre" in line}
    assert logged == {3: 5.0, 6: 2.0, 9: None}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert (checkpoints.best(), checkpoints.steps()) == (6, [6, 9])


def test_checkpoints_may_lie_elsewhere(make_config, tmp_path, capsys):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    config = make_config(**{"train.steps": 3, "checkpoint.directory": str(elsewhere)})
    start(config, workdir)
    assert not (workdir / "checkpoints").exists()
    with Checkpoints(elsewhere) as checkpoints:
        assert checkpoints.steps() == [3]
    # Whoever reads the run finds them.
    mesh = sharding.make_mesh(config.mesh)
    assert restore(usfm_config.of_run(workdir, {}), workdir, mesh=mesh).params["encoder"]
    assert inspect_checkpoint.inspect(workdir)["steps"] == [3]
    of_other = make_config(**{"model.init_from": str(workdir)})
    assert source_of(of_other, read_folder(config.data.root, tasks=config.tasks).tasks)
    # A run that looks for them in another place would begin again.
    with pytest.raises(UserError, match=f"holds no checkpoint, and those of .* lie in {elsewhere}"):
        start(make_config(**{"train.steps": 3}), workdir)
    capsys.readouterr()
    start(config, workdir)
    assert "going on from step 3 of 3" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["compiling", "checkpoint"])
def test_a_workdir_that_is_deleted_holds_a_usable_run_in_the_end(make_config, tmp_path, when):
    config, workdir = make_config(), tmp_path / "run"
    deleted = []

    def delete():
        if not deleted:
            shutil.rmtree(workdir)
            deleted.append(True)

    def program_of(*of):
        if when == "compiling":
            delete()
        return make_program(*of)

    def score(params):  # asked at each checkpoint, before anything is saved
        if when == "checkpoint":
            delete()
        return 0.5

    start(config, workdir, program_of=program_of, score=score)
    assert deleted
    written = json.dumps(usfm_config.to_dict(usfm_config.read(workdir / "config.json")))
    assert written == json.dumps(usfm_config.to_dict(config))
    assert lines_of(workdir)[-1]["step"] == config.train.steps
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest() == config.train.steps
        assert checkpoints.arrays(config.train.steps)


def test_slots_that_the_devices_cannot_share_are_refused(make_config, tmp_path, monkeypatch):
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "expert"), axis_types=(AxisType.Auto,) * 3)
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes: mesh)
    with pytest.raises(UserError, match=r"train\.slots=12 cannot be shared by 8 devices"):
        start(make_config(**{"train.slots": 12}), tmp_path)


@pytest.mark.parametrize(
    ("temperature", "drawn", "said"),
    [
        (0.0, [14, 12, 14], []),
        (
            1.0,
            [16, 20, 4],
            ["share of slots: breast_2cls 40.0%, breast_lesion 50.0%, lung_2cls 10.0%"],
        ),
    ],
)
def test_the_stream_and_the_step_agree_on_the_mix_of_tasks(
    make_config, tmp_path, monkeypatch, capsys, temperature, drawn, said
):
    class Ready(Exception):
        """All is there that the step is made of; compiling it would show no more."""

    def stop(config, workdir, tasks, run_inputs, own, mesh):
        raise Ready(run_inputs.mix.slots, [run_inputs.batches[step]["task"] for step in range(4)])

    rows = {"breast_2cls": np.arange(8), "breast_lesion": np.arange(10), "lung_2cls": np.arange(2)}
    monkeypatch.setattr(inputs, "training_rows", lambda *_: rows)
    monkeypatch.setattr(train_module, "_with_steps", stop)
    fields = {"tasks": ",".join(rows), "train.slots": 10, "data.temperature": temperature}
    with pytest.raises(Ready) as ready:
        start(make_config(**fields), tmp_path)
    slots, tasks = ready.value.args
    assert np.bincount(np.concatenate(tasks)).tolist() == drawn
    of_lesion = drawn[1] // 4
    assert slots == {"classification": 10 - of_lesion, "segmentation": of_lesion}
    assert [line for line in capsys.readouterr().err.splitlines() if "share" in line] == said


def test_ctrl_c_stops_after_saving_and_when_pressed_again_at_once(
    make_config, tmp_path, monkeypatch, capsys
):
    class PressingLog(Log):
        def add(self, step, metrics, images, waited):
            super().add(step, metrics, images, waited)
            if step == 4:
                signal.raise_signal(signal.SIGINT)
            if step == 5 and twice:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_module, "Log", PressingLog)
    handler = signal.getsignal(signal.SIGINT)  # of a job in the background: ignored
    config = make_config(**{"checkpoint.every_steps": 1000})
    twice = True
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path)
    twice = False
    with pytest.raises(SystemExit, match=f"^{EXIT_TERMINATED}$"):
        start(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [5]
    assert "SIGINT: step 5 is saved; run the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler


def encoder_of(workdir, step: int, part: str) -> dict[str, np.ndarray]:
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        arrays = checkpoints.arrays(step)
    prefix = f"{part}/encoder/"
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def test_a_run_starts_from_the_encoder_it_is_given_and_logs_what_routers_do(make_config, tmp_path):
    # Without a classification task, whose classes would be weighted.
    tiny = VARIANTS["tiny"]
    make = functools.partial(DINOv3, tiny, jnp.dtype("float32"))
    encoder = jax.device_get(jax.jit(lambda key: init(make, key))(jax.random.key(5)))
    path = weights.export(encoder, tiny, tmp_path / "given")
    still = {"train.steps": 1, "optimizer.learning_rate": 1e-12, "model.moe.experts": 2}
    task = {"tasks": "task:breast_lesion"}
    start(make_config(**still, **task, **{"model.init_from": str(path)}), tmp_path / "run")
    up = encoder["blocks"]["mlp"]["up"]["kernel"]
    for part in ("params", "ema"):
        found = encoder_of(tmp_path / "run", 1, part)
        # A step of 1e-12 moves nothing that float32 would show.
        np.testing.assert_allclose(found["blocks/mlp/up/kernel"], up[:2], atol=1e-9)
        for expert in (0, 1):
            experts = found["moe_blocks/mlp/up/kernel"]
            np.testing.assert_allclose(experts[:, expert], up[2:], atol=1e-9)
    (line,) = lines_of(tmp_path / "run")
    assert len(line["routing/breast_lesion"]) == 2
    assert sum(line["routing/breast_lesion"]) == pytest.approx(1, abs=2e-3)  # rounded
    assert line["dropped"] == 0


def test_an_encoder_of_other_sizes_is_refused_with_the_variant_it_is(make_config, tmp_path):
    small = Variant(128, 2, 2, 64)
    make = functools.partial(DINOv3, small, jnp.dtype("float32"))
    encoder = jax.device_get(jax.jit(lambda key: init(make, key))(jax.random.key(5)))
    path = weights.export(encoder, small, tmp_path / "given")
    config = make_config(**{"model.init_from": str(path)})
    with pytest.raises(UserError, match=r"is not a tiny: it has 2 layers of width 128.*no variant"):
        start(config, tmp_path / "run")

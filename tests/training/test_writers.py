import struct
import sys
import types
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from usfm import checks
from usfm import config as usfm_config
from usfm.errors import UserError
from usfm.training import writers
from usfm.training.writers import TensorBoard, writers_of

MADE: Any = event_pb2  # its classes are made at run time, unknown to a type checker
LINE = {"step": 3, "loss/a": 0.5, "routing/a": [0.25, 0.75]}


def events_of(directory) -> list[Any]:
    """The events of all files, in the form of TFRecord: length, its checksum, data, checksum."""
    events = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = MADE.Event()
            event.ParseFromString(data[12 : 12 + length])
            events.append(event)
            data = data[16 + length :]
    return events


def test_tensorboard_is_told_numbers_by_step_and_where_a_start_goes_on_from(tmp_path):
    writer = TensorBoard(tmp_path, 0)
    writer.write(LINE)
    writer.close()
    found = {value.tag: (event.step, value.simple_value)
             for event in events_of(tmp_path) for value in event.summary.value}  # fmt: skip
    assert found == {"loss/a": (3, 0.5), "routing/a/0": (3, 0.25), "routing/a/1": (3, 0.75)}
    again = TensorBoard(tmp_path, 2)
    again.write(LINE)
    again.close()
    # TensorBoard drops what was written before of these steps and later ones.
    starts = [event for event in events_of(tmp_path) if event.HasField("session_log")]
    assert [event.step for event in starts] == [1, 3]


def test_tensorboard_that_cannot_be_written_is_told_once_and_tried_again(tmp_path, capsys):
    directory = tmp_path / "tensorboard"
    directory.write_text("a file is in the way")
    writer = TensorBoard(directory, 0)
    writer.write(LINE)
    writer.write(LINE)
    assert capsys.readouterr().err.count("tensorboard cannot be written") == 1
    directory.unlink()
    writer.write(LINE)
    writer.close()
    assert [event.step for event in events_of(directory) if event.summary.value] == [3]


@pytest.fixture
def config():
    config = usfm_config.base()
    config.watch.update(tensorboard=False, wandb="ultrasound")
    return config


def test_weights_and_biases_goes_on_with_the_run_of_the_workdir(config, tmp_path, monkeypatch):
    calls: list[Any] = []

    class Run:
        id = "abc"

        def log(self, numbers, step):
            calls.append((numbers, step))

        def finish(self):
            calls.append("finished")

    def init(**settings):
        calls.append((settings["project"], settings["id"], settings["resume"]))
        assert settings["config"]["train"]["steps"] == config.train.steps
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        lines, wandb = writers_of(config, tmp_path, 0)
        wandb.write(LINE)
        lines.close()
        wandb.close()
    logged = ({"loss/a": 0.5, "routing/a/0": 0.25, "routing/a/1": 0.75}, 3)
    assert calls == [
        ("ultrasound", None, "allow"), logged, "finished",
        ("ultrasound", "abc", "allow"), logged, "finished",
    ]  # fmt: skip


def test_weights_and_biases_that_is_asked_for_and_missing_is_told(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config.data.root = "somewhere"
    with pytest.raises(UserError, match=r"watch.wandb=ultrasound: wandb is not installed; pip"):
        checks.check(config)


def test_other_processes_than_the_first_write_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(writers.processes, "is_first", lambda: False)
    assert writers_of(config, tmp_path, 0) == []
    assert not list(tmp_path.iterdir())

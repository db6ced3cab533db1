import contextlib
import json
import subprocess
import sys
from typing import Any

import jax
import pytest

from tools import benchmark
from tools.benchmarks import build, input, metrics, model, step, surgery, timing
from usfm import config as usfm_config
from usfm.data.phantoms.catalogue import PHANTOMS
from usfm.models import functional
from usfm.models.dinov3 import Variant
from usfm.models.moe import Mixture


def test_an_unknown_name_is_answered_by_the_known_ones(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "stpe"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "invalid choice: 'stpe' (choose from" in capsys.readouterr().err


def test_a_peer_of_no_named_benchmark_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "model", "--peer=torchjd"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--peer=torchjd is a peer of none of model" in capsys.readouterr().err


def test_runs_take_turns_after_warming_up():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    seconds = timing.alternating(runs)
    warm_up = ["a"] * timing.WARM_UPS + ["b"] * timing.WARM_UPS
    assert called == warm_up + ["a", "b"] * timing.ROUNDS
    assert {name: len(of) for name, of in seconds.items()} == dict.fromkeys("ab", timing.ROUNDS)


def test_a_ratio_is_the_median_of_those_of_the_rounds():
    assert timing.ratio([2.0, 3.0, 40.0], [1.0, 1.0, 10.0]) == 3.0


def test_the_noise_batch_has_slots_of_every_type_with_tasks_of_that_type():
    config = usfm_config.debug(usfm_config.base())
    tasks = tuple(PHANTOMS[id].task for id in sorted(PHANTOMS))
    batch = step._random_batch(config, tasks)
    types = [tasks[i].type for i in batch["task"]]
    assert types == sorted(types)
    assert set(types) == {"classification", "detection", "regression", "segmentation"}
    assert batch["image"].shape == (9, 4, 128, 128, 1)


SMALL = Variant(32, 2, 2, 64)


@pytest.mark.parametrize(
    "mixture", [None, Mixture(experts=4, layers=(1,)), Mixture(experts=4, layers=(1,), top_k=2)]
)
def test_the_flops_of_a_case_are_those_that_xla_counts(monkeypatch, mixture):
    monkeypatch.setitem(model.VARIANTS, "small", SMALL)
    case = model.Case("small", 64, 2, "float32", mixture)
    params, loss, inputs = model._pieces(case)
    # Unrolled, for XLA counts the body of a loop once.
    monkeypatch.setattr(
        functional, "scan", lambda stack, x, *args, start, stop, **_: _unrolled(stack, x, args)
    )
    compiled = jax.jit(loss).lower(params, *inputs).compile()
    analysis = compiled.cost_analysis()
    assert analysis is not None
    counted = analysis["flops"]
    # XLA also counts what is done element by element.
    assert case.forward_flops < counted < 1.35 * case.forward_flops


def _unrolled(stack, x, args):
    structure, params = functional.split(stack)
    layers = jax.tree.leaves(params)[0].shape[0]
    outs = []
    for i in range(layers):
        layer = functional.merge(structure, jax.tree.map(lambda a, i=i: a[i], params))
        x, out = layer(x, None, *args)
        outs.append(out)
    return x, jax.tree.map(lambda *o: jax.numpy.stack(o), *outs)


@pytest.mark.long
def test_the_timed_pieces_run_and_say_what_they_are(monkeypatch):
    monkeypatch.setattr(model, "CPU", model.Case("tiny", 32, 2, "float32", product=64))
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "WARM_UPS", 1)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the processes it starts
    lines = [json.loads(json.dumps(line)) for line in model.measure()]
    assert [line["name"] for line in lines] == [
        "model/ceiling",
        "model/tiny/train",
        "model/tiny/moe_top2_of_8",
        "model/tiny/moe_dense_4",
    ]
    assert all(line["value"] > 0 for line in lines)
    assert {"gflop_s", "share_of_ceiling"} <= lines[1]["conditions"].keys()


def test_a_peer_without_its_python_is_asked_for(monkeypatch):
    monkeypatch.delenv("PEER_PY", raising=False)
    monkeypatch.setattr(model, "_worker", lambda kind, case: contextlib.nullcontext())
    with pytest.raises(SystemExit, match="PEER_PY"):
        list(model.measure("transformers"))


def test_the_tool_runs_from_anywhere(tmp_path):
    script = benchmark.__file__
    done = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_surgery_gives_time_and_memory_as_multiples_of_the_plain_step(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "WARM_UPS", 1)
    monkeypatch.setattr(surgery, "TASKS", 3)
    monkeypatch.setattr(surgery, "IMAGE_SIZE", 32)
    monkeypatch.setitem(surgery.CASES, "small", SMALL)
    kept = {name: surgery.ENGINES[name] for name in ("plain", "stack_map/pcgrad")}
    monkeypatch.setattr(surgery, "ENGINES", kept)
    lines = {line["name"]: line for line in surgery.measure(case="small")}
    assert list(lines) == [
        f"surgery/small/{engine}/{what}" for engine in kept for what in ("time", "memory")
    ]
    assert lines["surgery/small/plain/time"]["ratio"] is None
    mapped = lines["surgery/small/stack_map/pcgrad/memory"]
    assert mapped["peer"] == "surgery/small/plain/memory"
    bytes_ = [float(str(lines[f"surgery/small/{of}/memory"]["value"])) for of in kept]
    assert mapped["ratio"] == pytest.approx(bytes_[1] / bytes_[0], abs=1e-2)


def test_a_build_is_timed_on_one_core_and_on_more(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(build, "IMAGES", 36)
    monkeypatch.setattr(build, "REPEATS", 1)
    monkeypatch.setattr(build, "cores", lambda: 2)
    one, two = build.measure()
    assert (one["name"], one["peer"], one["ratio"]) == ("build/1_core", None, None)
    assert (two["name"], two["peer"]) == ("build/2_cores", "build/1_core")
    conditions = two["conditions"]
    assert isinstance(conditions, dict)
    assert conditions["share_of_linear"] == pytest.approx(float(str(two["ratio"])) / 2, abs=1e-3)
    assert conditions["cpu_seconds"] > 0


def test_input_times_reading_and_the_pipeline_and_says_why_there_is_no_peer(monkeypatch, phantoms):
    monkeypatch.setattr(input, "ROUNDS", 1)
    monkeypatch.setattr(input, "SIZE", 32)
    monkeypatch.setattr(input, "COLOURS", {"": 1})
    monkeypatch.setattr(input, "_lacks", lambda python: "No module named 'albumentations'")
    lines: dict[Any, Any] = {line["name"]: line for line in input.measure(str(phantoms))}
    turns = ("read", "read_slots", "read_first", "pipeline", "worker")
    assert list(lines) == [f"input/{turn}" for turn in turns]
    assert all(line["value"] > 0 for line in lines.values())
    assert lines["input/worker"]["unit"] == "MiB"
    pipeline = lines["input/pipeline"]
    stated = pipeline["conditions"]
    # One round, so the share is that of the values, which have one decimal.
    share = pipeline["value"] / lines["input/read"]["value"]
    assert stated["share_of_read"] == pytest.approx(share, abs=1e-3)
    assert (pipeline["peer"], stated["no_peer"]) == (None, "No module named 'albumentations'")


def test_a_python_without_albumentations_says_what_it_lacks():
    assert input._lacks(sys.executable) == "ModuleNotFoundError: No module named 'albumentations'"


def test_metrics_are_timed_by_type_and_from_files_and_it_says_why_there_is_no_peer(
    monkeypatch, phantoms
):
    monkeypatch.setattr(metrics, "ROUNDS", 1)
    monkeypatch.delenv("PEER_PY", raising=False)
    lines: dict[Any, Any] = {line["name"]: line for line in metrics.measure(str(phantoms))}
    types = ("classification", "detection", "regression", "segmentation")
    assert lines.keys() == {f"metrics/{name}" for name in (*types, "files")}
    for line in lines.values():
        assert line["value"] > 0
        assert (line["peer"], line["ratio"]) == (None, None)
        assert line["conditions"]["no_peer"] == "PEER_PY names no Python"
    rows = {name: line["conditions"]["rows"] for name, line in lines.items()}
    assert rows.pop("metrics/files") == sum(rows.values()) == 96

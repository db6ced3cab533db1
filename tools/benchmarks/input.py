"""benchmark input: rows a second that one core feeds to a training step, beside reading alone.

All take turns on one core, with files in the system's cache. Values are rows a second of that
core's time: on a shared machine the clock also counts the turns of others. The peer decodes and
augments an FM_UIA folder's files as the official baseline does (peer_albumentations.py); it runs
in $PEER_PY, or else in this Python, where that has Albumentations: pip install usfm[bench].

read takes row after row with ArrayRecord alone, which drops each at once, in the processor's cache;
read_slots takes the rows of a slot at once, as they are needed together; read_first is what a row
takes the first time, when its hashes are checked, which the pipeline did in the round before.
"""

import contextlib
import os
import pathlib
import pickle
import statistics
import sys
from collections.abc import Iterator

from tools.benchmarks.folders import opened
from tools.benchmarks.timing import ROUNDS, Line, conditions
from tools.benchmarks.worker import Worker, lacks, started
from usfm.data.builder import open_store

PEER = pathlib.Path(__file__).with_name("peer_albumentations.py")
SIZE = 256  # pixels a side
PHANTOM_ROWS = 40
COLOURS = {"": 1, "/rgb": 3}  # what a name ends with, by the channels of the store


def measure(data: str = "") -> Iterator[Line]:
    """Rows a second of reading and of the whole pipeline, and the memory of a worker.

    Args:
        data: an FM_UIA folder; "" = phantoms are made.
    """
    with contextlib.ExitStack() as stack:
        folder, scratch = stack.enter_context(opened(data, PHANTOM_ROWS))
        root = folder.roots[0]
        ours = {}
        for ending, channels in COLOURS.items():
            file = scratch / f"store{channels}"
            file.write_bytes(pickle.dumps(open_store(folder, (SIZE, SIZE), channels, scratch)))
            ours[ending] = stack.enter_context(
                started(sys.executable, "-m", "tools.benchmarks.feed", str(file))
            )
        turns = {
            f"input/{what}{ending}": (worker, what)
            for ending, worker in ours.items()
            for what in ("read", "read_slots", "read_first", "pipeline")
        }
        python = os.environ.get("PEER_PY") or sys.executable
        why_no_peer = _lacks(python)
        if not why_no_peer:
            turns["input/peer"] = stack.enter_context(started(python, str(PEER), str(root))), ""
        rates = _rates(turns)
        stated = conditions() | {"data": root.name, "image_size": SIZE}
        yield from _lines(rates, turns, stated, why_no_peer)
        for ending, worker in ours.items():
            yield _line(f"input/worker{ending}", float(worker.run("memory")), "MiB", stated)


def _lacks(python: str) -> str:
    """Why the peer cannot run in a Python; "" where it can."""
    return lacks(python, "albumentations, cv2")


def _rates(turns: dict[str, tuple[Worker, str]]) -> dict[str, list[tuple[float, float]]]:
    """Rows a second of the core's time and of the clock's, of each in every round."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for round_ in range(ROUNDS + 1):
        for name, (worker, what) in turns.items():
            wall, cpu = map(float, worker.run(what).split())
            rows = int(worker.about.rpartition("\t")[2])
            if round_:  # the first one warms up
                rates[name].append((rows / cpu, rows / wall))
    return rates


def _lines(
    rates: dict[str, list[tuple[float, float]]],
    turns: dict[str, tuple[Worker, str]],
    stated: Line,
    why_no_peer: str,
) -> Iterator[Line]:
    for name, of_name in rates.items():
        what = name.split("/")[1]
        detail: Line = {
            "rows_s_by_the_clock": round(statistics.median(wall for _, wall in of_name))
        }
        peer = times = None
        if what == "pipeline":
            for reading in ("read", "read_slots"):
                of_reading = rates[name.replace("pipeline", reading)]
                detail[f"share_of_{reading}"] = _times(of_name, of_reading)
            if why_no_peer:
                detail["no_peer"] = why_no_peer
            else:
                peer = turns["input/peer"][0].about.partition("\t")[0]
                times = _times(of_name, rates["input/peer"])
        value = statistics.median(cpu for cpu, _ in of_name)
        yield _line(name, value, "rows/s", stated | detail, peer=peer, ratio=times)


def _times(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> float:
    """The median over rounds of ours / theirs, in the core's time."""
    return round(statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs, strict=True)), 3)


def _line(name: str, value: float, unit: str, stated: Line, **rest: object) -> Line:
    line: Line = {"name": name, "value": round(value, 1), "unit": unit, "peer": None, "ratio": None}
    return line | rest | {"conditions": stated}

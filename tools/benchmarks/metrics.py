"""benchmark metrics: rows a second that are scored, beside SimpleITK and scikit-learn row by row.

A folder's own truths, moved and blurred by a seed, stand for predictions, and are handed in as a
submission, which both sides read. Each type of task is scored from memory, all of its metrics
(all) or, by the peer, the official ones alone (official); "files" reads the rows too, and on our
side does all that evaluate does: intervals, single classes, both forms of the result. The peer
(peer_official.py) runs in $PEER_PY: pip install usfm[parity].
"""

import contextlib
import functools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tools.benchmarks import timing, worker
from tools.benchmarks.folders import opened
from tools.benchmarks.timing import Line
from tools.benchmarks.worker import Worker, started
from usfm.data.folder import Folder, Row
from usfm.data.parallel import cores
from usfm.evaluation.classes import OF_CLASS, by_class
from usfm.evaluation.evaluate import Evaluation, evaluate
from usfm.evaluation.metrics import score_row, summarise
from usfm.evaluation.prediction import Answer, truth
from usfm.evaluation.submission import read_submission, write_submission
from usfm.tasks import Task

PEER = pathlib.Path(__file__).with_name("peer_official.py")
PHANTOM_ROWS = 24
MOVED = 0.03  # how far predictions are from the truth, of a side
ROUNDS = 3  # the peer's are long


def measure(data: str = "") -> Iterator[Line]:
    """Rows a second by type of task, and of a whole submission.

    Args:
        data: an FM_UIA folder; "" = phantoms are made.
    """
    with contextlib.ExitStack() as stack:
        folder, scratch = stack.enter_context(opened(data, PHANTOM_ROWS))
        root = folder.roots[0]
        submission = scratch / "submission"
        write_submission(moved(folder), folder, submission)
        ours = _ours(folder, submission)
        turns = {(name, "ours"): _timed(run) for name, (_, run) in ours.items()}
        stated = timing.conditions() | {"data": root.name, "rounds": ROUNDS, "threads": cores()}
        python, about = os.environ.get("PEER_PY", ""), None
        if why := lacks(python):
            stated["no_peer"] = why
        else:
            peer = stack.enter_context(started(python, str(PEER), str(root), str(submission)))
            about = peer.about
            for name in ours:
                type_ = "Regression" if name == "regression" else name
                for how in ("all", "official"):
                    turns[name, how] = functools.partial(_seconds, peer, f"{type_} {how}")
        seconds = _alternating(turns)
    for name, (rows, _) in ours.items():
        taken = _columns(seconds[name, "ours"])
        detail: Line = {"rows": rows, "rows_s_of_a_core": _rate(rows, taken[1])}
        ratios = {
            f"ratio_{how}{what}": timing.ratio(theirs, of_ours)
            for how in ("all", "official")
            if about
            for what, theirs, of_ours in zip(
                ("", "_of_a_core"), _columns(seconds[name, how]), taken, strict=True
            )
        }
        yield {
            "name": f"metrics/{name}",
            "value": _rate(rows, taken[0]),
            "unit": "rows/s",
            "peer": about,
            "ratio": ratios.pop("ratio_all", None),
            "conditions": stated | detail | ratios,
        }


def _columns(seconds: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Seconds by the clock and of all cores."""
    return [wall for wall, _ in seconds], [cpu for _, cpu in seconds]


def _rate(rows: int, seconds: list[float]) -> float:
    return round(rows / statistics.median(seconds), 1)


def _timed(run: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    """Makes a function say its seconds by the clock and of all cores."""

    def timed() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - wall, time.process_time() - cpu

    return timed


def _seconds(peer: Worker, what: str) -> tuple[float, float]:
    wall, cpu = map(float, peer.run(what).split())
    return wall, cpu


def lacks(python: str) -> str:
    """Why the peer cannot run in a Python; "" where it can."""
    if not python:
        return "PEER_PY names no Python"
    return worker.lacks(python, "cv2, medpy, SimpleITK, sklearn")


def moved(folder: Folder) -> Iterator[tuple[Row, Answer]]:
    """Answers to all rows that miss the truth a little, the same each time."""
    generator = np.random.default_rng(0)
    for task in folder.tasks:
        for row in folder.rows[task.id]:
            yield row, _move(task, truth(folder, task, row), generator)


def _move(task: Task, true: Answer, generator: np.random.Generator) -> Answer:
    if true.mask is not None:
        by = np.rint(generator.normal(0, MOVED, 2) * true.mask.shape).astype(int)
        return Answer(mask=np.roll(true.mask, by, (0, 1)))
    if true.probs is not None:
        noise = generator.dirichlet(np.ones(task.num_classes))
        return Answer(probs=(0.4 * true.probs + 0.6 * noise).astype(np.float32))
    if true.box is not None:
        low, high = (true.box + generator.normal(0, MOVED, 4)).reshape(2, 2)
        box = np.concatenate([np.minimum(low, high), np.maximum(low, high)])
        return Answer(box=box.astype(np.float32), confidence=generator.random())
    assert true.points is not None
    points = np.nan_to_num(true.points) + generator.normal(0, MOVED, true.points.shape)
    return Answer(points=points.astype(np.float32))


def _ours(folder: Folder, submission: pathlib.Path) -> dict[str, tuple[int, Callable[[], object]]]:
    """Number of rows and a function that scores them, by type, and of the whole ("files")."""
    answers = {(row.task_id, row.key): answer for row, answer in _read(folder, submission)}
    threads = cores()

    def score(rows_of: Mapping[Task, list[tuple]]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for task, rows in rows_of.items():
                each = pool.map if task.type == "segmentation" else map  # as evaluate does
                scored = list(each(lambda row, task=task: score_row(task, *row), rows))
                summarise(task, scored)
                if task.type in OF_CLASS:
                    by_class(task, scored)

    by_type: dict[str, dict[Task, list[tuple]]] = {}
    for task in folder.tasks:
        by_type.setdefault(task.type, {})[task] = [
            ((row.height, row.width), answers[task.id, row.key], truth(folder, task, row))
            for row in folder.rows[task.id]
        ]
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        type_: (sum(map(len, rows_of.values())), lambda rows_of=rows_of: score(rows_of))
        for type_, rows_of in by_type.items()
    }

    return runs | {"files": (len(answers), lambda: scored(folder, submission))}


def scored(folder: Folder, submission: pathlib.Path) -> Evaluation:
    """All that evaluate says of a submission."""
    return evaluate(
        _read(folder, submission),
        folder,
        folder.rows,
        trivial={},
        part_of=lambda row: "all",
        group_of=lambda row: row.content,
    )


def _read(folder: Folder, submission: pathlib.Path) -> Iterator[tuple[Row, Answer]]:
    everything = [row for of_task in folder.rows.values() for row in of_task]
    return read_submission(folder, submission, everything)


def _alternating(
    turns: Mapping[tuple[str, str], Callable[[], tuple[float, float]]],
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """What each turn says in every round but the first, which warms up."""
    seconds = {name: [] for name in turns}
    for round_ in range(ROUNDS + 1):
        for name, run in turns.items():
            said = run()
            if round_:
                seconds[name].append(said)
    return seconds

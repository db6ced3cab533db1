"""Score a stream of answers: evaluation.json, its official form, and evaluation_rows.csv."""

import collections
import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from etils import epath

from usfm.data.folder import Folder, Row
from usfm.data.parallel import cores
from usfm.evaluation.bootstrap import intervals
from usfm.evaluation.classes import OF_CLASS, by_class
from usfm.evaluation.files import write_atomically
from usfm.evaluation.metrics import score_row, summarise
from usfm.evaluation.official import official_report
from usfm.evaluation.prediction import Answer, truth
from usfm.tasks import Task

ROW_FIELDS = ("task_id", "row_key", "group", "part", "metric", "value")
# Answers kept waiting for a free thread: a segmentation's holds a mask of original size.
WAITING = 32
SEED = 0  # of the resamples of intervals

Trivial = Callable[[Row], Answer]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run scored.

    Attributes:
        report: the content of evaluation.json: "tasks" and "trivial" (each {task id: {metric:
            value, "n": rows, "undefined": {metric: reason}}}, over the same rows), "missing"
            (rows without an answer), "parts" (rows asked for by part) and "skipped_rows" (rows
            that the reader left out because they are faulty). A task of "tasks" also has what
            bootstrap.intervals gives and, where it has classes, "classes" (classes.by_class).
        official: the content of evaluation_official.json; see official.py.
        rows: the lines of evaluation_rows.csv, see ROW_FIELDS: one a row and score. They are what
            metrics.score_row gives, more than the metrics of a row, so that any metric of any
            subset can be computed from the file.
    """

    report: dict
    official: dict
    rows: tuple[tuple[str, str, str, str, str, float], ...]


@dataclasses.dataclass(frozen=True)
class _Scores:
    model: dict[str, float]
    trivial: dict[str, float] | None


def evaluate(
    answers: Iterable[tuple[Row, Answer]],
    folder: Folder,
    rows_by_task: Mapping[str, Sequence[Row]],
    *,
    trivial: Mapping[str, Trivial],
    part_of: Callable[[Row], str],
    group_of: Callable[[Row], str],
) -> Evaluation:
    """Score answers as they arrive, in threads; the result does not depend on their order.

    Args:
        answers: rows and what is said of them. Rows that never come are counted as missing.
        folder: where the truth is.
        rows_by_task: the labelled rows that should be answered, by task id.
        trivial: the trivial predictors of tasks, scored on the rows that were answered.
        part_of: the part of the split that a row belongs to.
        group_of: the group (patient, video, image) that a row belongs to.

    Raises:
        ValueError: a row was not asked for or is answered twice, or an answer has the wrong form.
    """
    tasks = {task.id: task for task in folder.tasks}
    asked = {(task_id, row.key) for task_id, rows in rows_by_task.items() for row in rows}
    scores = _score_all(answers, folder, tasks, asked, trivial)
    of_model, of_trivial, of_tasks, missing, lines = {}, {}, {}, [], []
    for task_id, rows in rows_by_task.items():
        task = tasks[task_id]
        answered = [row for row in rows if (task_id, row.key) in scores]
        of_task = [scores[task_id, row.key] for row in answered]
        of_tasks[task] = scored = [s.model for s in of_task]
        groups = [group_of(row) for row in answered]
        of_model[task_id] = summarise(task, scored) | intervals(task, scored, groups, seed=SEED)
        if task.type in OF_CLASS:
            of_model[task_id]["classes"] = by_class(task, scored)
        if task_id in trivial:
            floor = [s.trivial for s in of_task if s.trivial is not None]
            of_trivial[task_id] = summarise(task, floor)
        missing += [
            {"task_id": task_id, "row_key": row.key}
            for row in rows
            if (task_id, row.key) not in scores
        ]
        lines += [
            (task_id, row.key, group, part_of(row), metric, value)
            for row, group, of_row in zip(answered, groups, scored, strict=True)
            for metric, value in of_row.items()
        ]
    parts = collections.Counter(part_of(row) for rows in rows_by_task.values() for row in rows)
    report = {
        "tasks": of_model,
        "trivial": of_trivial,
        "missing": missing,
        "parts": dict(sorted(parts.items())),
        "skipped_rows": len({(fault.file, fault.row) for fault in folder.skipped}),
    }
    return Evaluation(report, official_report(of_tasks), tuple(lines))


def _score_all(
    answers: Iterable[tuple[Row, Answer]],
    folder: Folder,
    tasks: Mapping[str, Task],
    asked: set[tuple[str, str]],
    trivial: Mapping[str, Trivial],
) -> dict[tuple[str, str], _Scores]:
    """Scores by (task id, row key) of the rows that were answered."""

    def score(row: Row, answer: Answer) -> _Scores:
        task, size = tasks[row.task_id], (row.height, row.width)
        true = truth(folder, task, row)
        floor = trivial.get(task.id)
        return _Scores(
            score_row(task, size, answer, true),
            score_row(task, size, floor(row), true) if floor else None,
        )

    scores = {}
    waiting: collections.deque[tuple[tuple[str, str], Future[_Scores]]] = collections.deque()
    seen = set()
    with ThreadPoolExecutor(cores()) as pool:
        for row, answer in answers:
            name = (row.task_id, row.key)
            if name not in asked:
                raise ValueError(f"{row.task_id}: an answer to {row.key}, which was not asked for")
            if name in seen:
                raise ValueError(f"{row.task_id}: a second answer to {row.key}")
            seen.add(name)
            if tasks[row.task_id].type != "segmentation":
                scores[name] = score(row, answer)  # sooner than a thread would begin
                continue
            waiting.append((name, pool.submit(score, row, answer)))
            if len(waiting) > WAITING:
                name, future = waiting.popleft()
                scores[name] = future.result()
        scores |= {name: future.result() for name, future in waiting}
    return scores


def write(evaluation: Evaluation, workdir: epath.PathLike) -> None:
    """Write evaluation.json, evaluation_official.json and evaluation_rows.csv, each whole or not.

    A score that is not finite is an empty value in the CSV.
    """
    workdir = epath.Path(workdir)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ROW_FIELDS)
    for *names, value in evaluation.rows:
        writer.writerow([*names, value if math.isfinite(value) else ""])
    write_atomically(workdir / "evaluation_rows.csv", text.getvalue().encode())
    contents = {"evaluation_official": evaluation.official, "evaluation": evaluation.report}
    for name, content in contents.items():
        written = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(workdir / f"{name}.json", written.encode() + b"\n")

"""Score a stream of answers: evaluation.json and evaluation_rows.csv."""

import collections
import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from etils import epath

from usfm import processes
from usfm.data.folder import Folder, Row
from usfm.evaluation.files import write_atomically
from usfm.evaluation.metrics import score_row, summarise
from usfm.evaluation.prediction import Answer, truth
from usfm.tasks import Task

ROW_FIELDS = ("task_id", "row_key", "group", "part", "metric", "value")
# Answers kept waiting for a free thread: a segmentation's holds a mask of original size.
WAITING = 32

Trivial = Callable[[Row], Answer]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run scored.

    Attributes:
        report: the content of evaluation.json: "tasks" and "trivial" (each {task id: {metric:
            value, "n": rows, "undefined": {metric: reason}}}, over the same rows), "missing"
            (rows without an answer), "parts" (rows asked for by part) and "skipped_rows" (rows
            that the reader left out because they are faulty).
        rows: the lines of evaluation_rows.csv, see ROW_FIELDS: one a row and score. Beside the
            metrics of a row, those of a classification row are prob_true, label and prob_0 ..
            prob_C-1, so that any metric of any subset can be computed from the file.
    """

    report: dict
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

    Of several processes each scores the answers that it has; all call this, and get the same.

    Args:
        answers: rows and what is said of them. Rows that no process has are counted as missing.
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
    of_processes = processes.gather(_score_all(answers, folder, tasks, asked, trivial))
    scores = {name: of_row for scored in of_processes for name, of_row in scored.items()}
    if len(scores) < sum(map(len, of_processes)):
        raise ValueError("two processes answered the same row")
    of_model, of_trivial, missing, lines = {}, {}, [], []
    for task_id, rows in rows_by_task.items():
        answered = [row for row in rows if (task_id, row.key) in scores]
        of_task = [scores[task_id, row.key] for row in answered]
        of_model[task_id] = summarise(tasks[task_id], [s.model for s in of_task])
        if task_id in trivial:
            floor = [s.trivial for s in of_task if s.trivial is not None]
            of_trivial[task_id] = summarise(tasks[task_id], floor)
        missing += [
            {"task_id": task_id, "row_key": row.key}
            for row in rows
            if (task_id, row.key) not in scores
        ]
        lines += [
            (task_id, row.key, group_of(row), part_of(row), metric, value)
            for row, of_row in zip(answered, of_task, strict=True)
            for metric, value in of_row.model.items()
        ]
    parts = collections.Counter(part_of(row) for rows in rows_by_task.values() for row in rows)
    report = {
        "tasks": of_model,
        "trivial": of_trivial,
        "missing": missing,
        "parts": dict(sorted(parts.items())),
        "skipped_rows": len({(fault.file, fault.row) for fault in folder.skipped}),
    }
    return Evaluation(report, tuple(lines))


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
    with ThreadPoolExecutor() as pool:
        for row, answer in answers:
            name = (row.task_id, row.key)
            if name not in asked:
                raise ValueError(f"{row.task_id}: an answer to {row.key}, which was not asked for")
            if name in seen:
                raise ValueError(f"{row.task_id}: a second answer to {row.key}")
            seen.add(name)
            waiting.append((name, pool.submit(score, row, answer)))
            if len(waiting) > WAITING:
                name, future = waiting.popleft()
                scores[name] = future.result()
        scores |= {name: future.result() for name, future in waiting}
    return scores


def write(evaluation: Evaluation, workdir: epath.PathLike) -> None:
    """Write evaluation.json and evaluation_rows.csv, each whole or not at all.

    A score that is not finite is an empty value in the CSV.
    """
    workdir = epath.Path(workdir)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ROW_FIELDS)
    for *names, value in evaluation.rows:
        writer.writerow([*names, value if math.isfinite(value) else ""])
    write_atomically(workdir / "evaluation_rows.csv", text.getvalue().encode())
    report = json.dumps(evaluation.report, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(workdir / "evaluation.json", report.encode() + b"\n")

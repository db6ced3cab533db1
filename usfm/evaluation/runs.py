"""What a workdir says of its run, read back from its files."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from usfm.config import flat
from usfm.errors import UserError
from usfm.evaluation.curves import Points, read_losses
from usfm.evaluation.evaluate import ROW_FIELDS


@dataclasses.dataclass(frozen=True)
class Scored:
    """What one row scored.

    Attributes:
        group: patient, video or image, of which rows are alike.
        scores: by name; NaN where the answer was not finite.
    """

    group: str
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was scored.

    Attributes:
        workdir: of the run.
        evaluation: content of its evaluation.json.
        rows: (task id, row key) -> what evaluation_rows.csv says of that row.
        config: fields of its config.json by dotted name; none where that file is gone.
        losses: of each task, from its metrics.jsonl.
    """

    workdir: pathlib.Path
    evaluation: Mapping[str, Any]
    rows: Mapping[tuple[str, str], Scored]
    config: Mapping[str, Any]
    losses: Mapping[str, Points]


def read_run(workdir: pathlib.Path) -> Run:
    """Reads a workdir that --mode=evaluate wrote.

    Raises:
        UserError: it is none, or one of its files is damaged; one line that says which, and what
            to do.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no workdir {workdir}: correct its name")
    evaluation = workdir / "evaluation.json"
    if not evaluation.exists():
        if not (workdir / "config.json").exists():
            raise UserError(f"{workdir} holds no run (no evaluation.json): correct its name")
        raise UserError(
            f"{workdir} was not scored (no evaluation.json): "
            f"run --workdir={workdir} --mode=evaluate"
        )
    report = read_json(evaluation)
    lacking = {"tasks", "trivial", "parts"} - report.keys()
    if lacking or not report["tasks"]:
        raise UserError(f"{evaluation} lacks {', '.join(sorted(lacking or {'tasks'}))}; {_AGAIN}")
    config = workdir / "config.json"
    return Run(
        workdir=workdir,
        evaluation=report,
        rows=_read_rows(workdir / "evaluation_rows.csv"),
        config=flat(read_json(config)) if config.exists() else {},
        losses=read_losses(workdir / "metrics.jsonl"),
    )


_AGAIN = "remove it and run --mode=evaluate again"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; {_AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; {_AGAIN}")
    return content


def _read_rows(path: pathlib.Path) -> dict[tuple[str, str], Scored]:
    if not path.exists():
        raise UserError(f"{path} is missing; run --mode=evaluate again")
    rows: dict[tuple[str, str], Scored] = {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        head = tuple(next(lines, ()))
        if head != ROW_FIELDS:
            raise UserError(
                f"{path} has columns {', '.join(head)}, not {', '.join(ROW_FIELDS)}; {_AGAIN}"
            )
        for line in lines:
            try:
                task_id, key, group, _, metric, value = line
                scored = rows.setdefault((task_id, key), Scored(group, {}))
                scored.scores[metric] = float(value) if value else math.nan
            except ValueError as error:
                raise UserError(f"{path} line {lines.line_num}: {error}; {_AGAIN}") from error
    return rows

"""From a run's config to its rows: the folder, its splits, and the rows that train."""

import hashlib
import math
import pathlib
import sys
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from usfm.data.folder import Folder, Row, read_folder
from usfm.data.splits import (
    DEFAULT_PATTERNS,
    Splits,
    gaps,
    leaks,
    make_splits,
    read_splits,
    write_splits,
)


def cache_dir(config: ConfigDict) -> pathlib.Path:
    """Where stores, and what is known of image files, are kept from run to run."""
    return pathlib.Path(config.data.cache_dir).expanduser()


def open_folder(
    config: ConfigDict, workdir: pathlib.Path, *, require_labels: bool = True
) -> Folder:
    """Reads and checks data.root; all faults go to workdir/bad_rows.csv too."""
    folder = read_folder(
        config.data.root,
        tasks=config.tasks,
        groups=config.data.groups.to_dict(),
        flip_ok=config.data.flip_ok.to_dict(),
        require_labels=require_labels,
        on_bad_row=config.data.on_bad_row,
        faults_file=workdir / "bad_rows.csv",
        cache_dir=cache_dir(config),
    )
    if folder.skipped:
        count = f"{len(folder.skipped)} fault{'s' if len(folder.skipped) > 1 else ''}"
        say(f"{count} in {folder.root}, rows left out: see {workdir}/bad_rows.csv")
    return folder


def open_splits(config: ConfigDict, folder: Folder, workdir: pathlib.Path | None = None) -> Splits:
    """The given split, or one made by groups; written to workdir/splits.csv where that is given.

    Only who trains gives it: the file says what was trained on, whatever is scored later.
    """
    patterns = tuple(config.data.group_patterns) or DEFAULT_PATTERNS
    if config.data.splits_file:
        splits = read_splits(pathlib.Path(config.data.splits_file), folder, patterns=patterns)
        if straddling := leaks(splits):
            say(
                f"warning: {config.data.splits_file} has {len(straddling)} groups (images, videos "
                f"or patients) on two sides, such as {straddling[0]}: scores will flatter"
            )
    else:
        splits = make_splits(
            folder,
            val_fraction=config.data.val_fraction,
            test_fraction=config.data.test_fraction,
            patterns=patterns,
        )
    if workdir is not None:
        for gap in gaps(splits, folder):
            say(f"warning: {gap}")
        write_splits(workdir / "splits.csv", splits, folder)
    return splits


def rows_in(folder: Folder, splits: Splits, part: str) -> dict[str, list[Row]]:
    """The labelled rows of a part by task id; `all` takes every part."""
    return {
        task_id: [row for row in rows if row.labelled and part in ("all", splits.part(row))]
        for task_id, rows in folder.rows.items()
    }


def training_rows(folder: Folder, splits: Splits, fraction: float) -> dict[str, np.ndarray]:
    """Row.index of each task's training rows, or of a fraction of them.

    Rows are taken group by group in the order of a hash, so that a smaller fraction lies inside a
    larger, and one that is not small has few groups in part.
    """
    chosen = {}
    for task_id, rows in rows_in(folder, splits, "train").items():
        rows = sorted(rows, key=lambda row: (_rank(splits.group(row)), row.index))
        kept = rows[: math.ceil(fraction * len(rows))]
        chosen[task_id] = np.array(sorted(row.index for row in kept), np.int64)
    return chosen


def class_counts(folder: Folder, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64 [T, C]: how many of these rows (by Row.index) each task has of each class.

    C is the largest number of classes; tasks of other types than classification have zeros.
    """
    classes = max((task.num_classes for task in folder.tasks), default=0)
    counts = np.zeros((len(folder.tasks), classes), np.int64)
    for of_task, task in zip(counts, folder.tasks, strict=True):
        if task.type == "classification":
            chosen = set(rows[task.id].tolist())
            labels = [row.label for row in folder.rows[task.id] if row.index in chosen]
            of_task += np.bincount(np.array(labels, np.int64), minlength=classes)
    return counts


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def say(text: str) -> None:
    """One plain line for the person who waits."""
    print(text, file=sys.stderr, flush=True)

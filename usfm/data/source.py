"""From a run's config to its rows: the folder, its splits, and the rows that train."""

import collections
import hashlib
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from usfm.data import builder
from usfm.data.folder import Folder, Row, read_folder
from usfm.data.roots import open_roots
from usfm.data.splits import DEFAULT_PATTERNS, Splits, gaps, leaks, make_splits
from usfm.data.splits_file import read_splits, write_splits
from usfm.data.store import Store
from usfm.tasks import Task
from usfm.tasks.fm_uia import check_overrides


def cache_dir(config: ConfigDict) -> pathlib.Path:
    """Where stores, and what is known of image files, are kept from run to run."""
    return pathlib.Path(config.data.cache_dir).expanduser()


def open_folder(
    config: ConfigDict, workdir: pathlib.Path | None, *, require_labels: bool = True
) -> Folder:
    """Reads and checks data.root; all faults go to bad_rows.csv in a given workdir too."""
    folder = read_roots(
        config,
        require_labels=require_labels,
        on_bad_row=config.data.on_bad_row,
        faults_file=workdir / "bad_rows.csv" if workdir is not None else None,
    )
    if folder.skipped and workdir is not None:
        count = f"{len(folder.skipped)} fault{'s' if len(folder.skipped) > 1 else ''}"
        say(f"{count} in {folder.place}, rows left out: see {workdir}/bad_rows.csv")
    return folder


def read_roots(
    config: ConfigDict,
    *,
    require_labels: bool,
    on_bad_row: str,
    faults_file: pathlib.Path | None,
) -> Folder:
    """The folder, or folders, or TFDS data set of data.root, as read_folder takes what is given."""
    return read_folder(
        *open_roots(config.data, cache_dir(config)),
        tasks=config.tasks,
        groups=config.data.groups.to_dict(),
        flip_ok=config.data.flip_ok.to_dict(),
        require_labels=require_labels,
        on_bad_row=on_bad_row,
        faults_file=faults_file,
        cache_dir=cache_dir(config),
    )


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


def open_store(config: ConfigDict, folder: Folder) -> Store:
    """The images and labels of a folder as training reads them; built on first use."""
    size = (config.data.image_size, config.data.image_size)
    return builder.open_store(folder, size, config.data.channels, cache_dir(config))


def rows_in(folder: Folder, splits: Splits, part: str) -> dict[str, list[Row]]:
    """The labelled rows of a part by task id; `all` takes every part."""
    return {
        task_id: [row for row in rows if row.labelled and part in ("all", splits.part(row))]
        for task_id, rows in folder.rows.items()
    }


def training_rows(folder: Folder, splits: Splits, data: ConfigDict) -> dict[str, np.ndarray]:
    """Row.index of each task's training rows, or of a fraction of them.

    Whole groups (patients, videos, images) are taken in one order, until the fraction and
    data.min_examples are reached: so a smaller fraction lies inside a larger one. Within a class
    the order is that of a hash, and classes take turns by their size, so that any share of the
    rows has about the classes of all.

    Args:
        folder: whose rows to choose among.
        splits: of that folder.
        data: the config's section: fraction, fractions, min_examples.
    """
    check_overrides("data.fractions", data.fractions, folder.rows)
    chosen = {}
    for task_id, rows in rows_in(folder, splits, "train").items():
        wanted = math.ceil(data.fractions.get(task_id, data.fraction) * len(rows))
        wanted = max(wanted, data.min_examples)
        kept: list[Row] = []
        for group in _in_turn(rows, splits):
            if len(kept) >= wanted:
                break
            kept += group
        chosen[task_id] = np.array(sorted(row.index for row in kept), np.int64)
    return chosen


def _in_turn(rows: Sequence[Row], splits: Splits) -> list[list[Row]]:
    """The groups of rows, those of equal class evenly spread over all."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(splits.group(row), []).append(row)
    classes: dict[int, list[str]] = {}
    for name in sorted(groups, key=_rank):
        labels = collections.Counter(row.label or 0 for row in groups[name])
        classes.setdefault(max(labels, key=lambda label: (labels[label], -label)), []).append(name)
    place = {
        name: ((nth + 0.5) / len(names), _rank(name))
        for names in classes.values()
        for nth, name in enumerate(names)
    }
    return [groups[name] for name in sorted(groups, key=place.__getitem__)]


def classes_of(folder: Folder, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Classification task -> int64 [N]: the class of each of its rows, given by Row.index."""
    labels = {
        task.id: {row.index: row.label for row in folder.rows[task.id]}
        for task in folder.tasks
        if task.type == "classification"
    }
    return {
        task_id: np.array([of_task[index] for index in rows[task_id].tolist()], np.int64)
        for task_id, of_task in labels.items()
    }


def class_counts(tasks: Sequence[Task], classes: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64 [T, C]: how many rows each task has of each class, from what classes_of returned.

    C is the largest number of classes; tasks of other types than classification have zeros.
    """
    width = max((task.num_classes for task in tasks), default=0)
    counts = np.zeros((len(tasks), width), np.int64)
    for of_task, task in zip(counts, tasks, strict=True):
        if task.id in classes:
            of_task += np.bincount(classes[task.id], minlength=width)
    return counts


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def say(text: str) -> None:
    """One plain line for the person who waits."""
    print(text, file=sys.stderr, flush=True)

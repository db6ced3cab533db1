"""Data folders in the FM_UIA form: ROOT/csv_files/*.csv beside the images they name."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

from usfm.data.duplicates import Entry
from usfm.data.faults import Fault, FolderError, write_faults
from usfm.data.lines import from_root, read_lines
from usfm.data.stated import find_tasks
from usfm.data.validation import validate
from usfm.errors import UserError
from usfm.tasks import Task
from usfm.tasks.fm_uia import check_overrides
from usfm.tasks.plans import select

__all__ = ["Fault", "Folder", "FolderError", "Row", "read_folder"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One labelled (or unlabelled) row of a CSV.

    Attributes:
        task_id: the task it belongs to.
        index: position among the good rows of its task, in reading order (CSV files sorted by
            name, then line); it is also the row's position in the store.
        key: unique within the task: the image_path, with "#2", "#3" for later rows of the same
            image_path, be it in another folder.
        csv: name of the file inside csv_files; its whole path where several folders are read.
        line: 1-based line in it (the header is 1).
        image_path: the CSV's own string, relative to csv_files.
        mask_path: likewise; "" where there is none.
        label: class of a classification row.
        box: x_min, y_min, x_max, y_max in pixels of the original image, the maxima exclusive.
        points: x, y in pixels of the original image, None where missing; () for other types.
        height: of the original image.
        width: of the original image.
        content: hash of the decoded pixels; equal for equal image content.
        mask_content: likewise of the mask; "" where there is no mask file.
        root: the folder it is from, by its number in Folder.roots.
        split_group: the patient or video of the CSV's column of that name, if it has one.
    """

    task_id: str
    index: int
    key: str
    csv: str
    line: int
    image_path: str
    mask_path: str
    label: int | None
    box: tuple[float, float, float, float] | None
    points: tuple[tuple[float, float] | None, ...]
    height: int
    width: int
    content: str
    mask_content: str = ""
    # Where a row lies, and what it is split by, are no part of what is stored of it; the store is
    # named by what a row looks like.
    root: int = dataclasses.field(default=0, repr=False)
    split_group: str = dataclasses.field(default="", repr=False)

    @property
    def labelled(self) -> bool:
        """Whether the row has the label its task's type asks for."""
        return (
            self.label is not None
            or self.box is not None
            or any(point is not None for point in self.points)
            or self.mask_content != ""
        )


@dataclasses.dataclass(frozen=True)
class Folder:
    """The good rows of a data folder, or of several.

    Attributes:
        roots: the folders.
        tasks: the selected tasks, sorted by id.
        rows: task id -> its good rows, at least one.
        skipped: the faults of the rows that on_bad_row="skip" left out.
        skipped_images: (task_id, image_path, number of the root) of those rows.
    """

    roots: tuple[pathlib.Path, ...]
    tasks: tuple[Task, ...]
    rows: dict[str, tuple[Row, ...]]
    skipped: tuple[Fault, ...] = ()
    skipped_images: frozenset[tuple[str, str, int]] = frozenset()

    @property
    def place(self) -> str:
        """The folders, as messages name them."""
        return _place(self.roots)

    def image_file(self, row: Row) -> pathlib.Path:
        """The image of a row."""
        return self.roots[row.root] / from_root(row.image_path)

    def mask_file(self, row: Row) -> pathlib.Path:
        """The mask of a row that has one."""
        return self.roots[row.root] / from_root(row.mask_path)


def read_folder(
    *roots: str | pathlib.Path,
    tasks: str = "all",
    groups: Mapping[str, str] | None = None,
    flip_ok: Mapping[str, bool] | None = None,
    require_labels: bool = True,
    on_bad_row: str = "error",
    faults_file: pathlib.Path | None = None,
    cache_dir: pathlib.Path | None = None,
) -> Folder:
    """Reads a folder, or several as one, and checks all that the chosen tasks need of it.

    Args:
        roots: each a folder that holds csv_files.
        tasks: which tasks, as plans.select takes them; the rows of others are not looked at.
        groups: task id -> clinical group, over the known ones.
        flip_ok: task id -> whether a mirrored image keeps its label, likewise.
        require_labels: an empty label, or a missing mask, is a fault. Labels that are given are
            checked either way.
        on_bad_row: "error", or "skip" to leave bad rows out; where labels are not required, and
            any row is left, also tasks that have none.
        faults_file: where all faults are written as CSV; removed when there are none.
        cache_dir: where what is known of the image files is kept for the next start.

    Raises:
        FolderError: all faults together; with on_bad_row="skip", if there is one that leaving
            rows out cannot put right.
        UserError: a task or group that the folder has not, or one folder twice.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row: {on_bad_row!r} is not known; give 'error' or 'skip'")
    paths = tuple(map(pathlib.Path, roots))
    for path in paths:
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise UserError(f"data.root names the folder {path} twice; name it once")
    lines, faults = read_lines(paths)
    known, contradictions = find_tasks(lines, groups, flip_ok)
    chosen: tuple[Task, ...] = ()
    try:
        if known:
            check_overrides("data.groups", groups, known)
            check_overrides("data.flip_ok", flip_ok, known)
            chosen = select(tuple(known.values()), tasks)
    except UserError as error:
        if not faults:
            raise
        # What is not known may be in a CSV that could not be read, so that is said.
        raise _error(paths, faults, faults_file) from error
    faults += [fault for task in chosen for fault in contradictions[task.id]]
    entries: list[Entry] = []
    for number, path in enumerate(paths):
        of_root = [line for line in lines if line.root == number]
        good, more = validate(path, of_root, known, chosen, require_labels, cache_dir)
        entries += good
        faults += more
    faults.sort(key=lambda fault: (fault.file, fault.row or 0))
    rows = _rows(entries)
    if faults and on_bad_row == "skip":
        if require_labels or not rows:
            faults = [_no_row_left(task) for task in chosen if task.id not in rows] + faults
        else:  # the rest can be answered
            chosen = tuple(task for task in chosen if task.id in rows)
    if any(on_bad_row == "error" or fault.row is None for fault in faults):
        raise _error(paths, faults, faults_file)
    if faults_file is not None:
        if faults:
            write_faults(faults_file, faults)
        else:
            faults_file.unlink(missing_ok=True)
    bad = {(fault.file, fault.row) for fault in faults}
    skipped_images = frozenset(
        (line.task_id, line.fields.get("image_path", ""), line.root)
        for line in lines
        if (line.csv, line.number) in bad
    )
    return Folder(paths, chosen, rows, tuple(faults), skipped_images)


def _rows(entries: Sequence[Entry]) -> dict[str, tuple[Row, ...]]:
    rows: dict[str, list[Row]] = {}
    on_image: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        of_task = rows.setdefault(entry.task.id, [])
        image_path = entry.line.fields["image_path"]
        on_image[entry.task.id, image_path] += 1
        number = on_image[entry.task.id, image_path]
        row = Row(
            task_id=entry.task.id,
            index=len(of_task),
            key=image_path if number == 1 else f"{image_path}#{number}",
            csv=entry.line.csv,
            line=entry.line.number,
            image_path=image_path,
            mask_path=entry.label.mask_path,
            label=entry.label.label,
            box=entry.label.box,
            points=entry.label.points,
            height=entry.image.height,
            width=entry.image.width,
            content=entry.image.content,
            mask_content=entry.mask.content if entry.mask else "",
            root=entry.line.root,
            split_group=entry.line.fields.get("split_group", "").strip(),
        )
        of_task.append(row)
    return {id: tuple(of_task) for id, of_task in rows.items()}


def _no_row_left(task: Task) -> Fault:
    remedy = "correct its rows, or leave it out by the config field tasks"
    return Fault(f"task {task.id}", None, "", "has no good row", remedy)


def _error(
    roots: Sequence[pathlib.Path], faults: Sequence[Fault], faults_file: pathlib.Path | None
) -> FolderError:
    if faults_file is not None:
        write_faults(faults_file, faults)
    return FolderError(_place(roots), faults, faults_file)


def _place(roots: Sequence[pathlib.Path]) -> str:
    return ", ".join(map(str, roots))

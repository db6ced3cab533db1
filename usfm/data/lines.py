"""The lines of the CSV files of data folders, as text."""

import csv
import dataclasses
import io
import os
import pathlib
from collections import Counter
from collections.abc import Sequence

from usfm.data.faults import Fault

DIRECTORY = "csv_files"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a CSV.

    Attributes:
        csv: name of the file; its whole path where lines of several folders are read.
        number: 1-based line in it (the header is 1).
        fields: column -> text; a column that the file has not is absent.
        excess: how many fields there are more than columns; negative where some are missing.
        root: which of several folders the file is from, by number.
    """

    csv: str
    number: int
    fields: dict[str, str]
    excess: int = 0
    root: int = 0

    @property
    def task_id(self) -> str:
        """The task it belongs to; "" where it does not say."""
        return self.fields.get("task_id", "").strip()

    def fault(self, field: str, fault: str, remedy: str) -> Fault:
        """A fault of this line."""
        return Fault(self.csv, self.number, field, fault, remedy)

    def wrong_count(self) -> Fault:
        """The fault of a line with an excess, whose fields may stand under the wrong columns."""
        kind = "too many" if self.excess > 0 else "too few"
        fault = f"the line has {abs(self.excess)} field(s) {kind}"
        return self.fault("", fault, "give one a column, in quotes where it holds a comma")


def from_root(path: str) -> str:
    """Turns a path of a CSV, relative to csv_files, into one relative to the root, in normal form.

    Lexical: folders inside the root may be links to anywhere.
    """
    return os.path.normpath(os.path.join(DIRECTORY, path))


def leaves_root(path: str) -> bool:
    """Whether a path that from_root gave is no path inside the root."""
    return os.path.isabs(path) or path.split(os.sep)[0] == os.pardir or "\0" in path


def read_lines(roots: Sequence[pathlib.Path]) -> tuple[list[Line], list[Fault]]:
    """Reads all CSV files of each folder, sorted by name; hidden files are passed over.

    Returns:
        The lines in reading order, and the faults of whole files.
    """
    lines: list[Line] = []
    faults: list[Fault] = []
    for number, root in enumerate(roots):
        files, faults_of_root = _csv_files(root)
        faults += faults_of_root
        for path in files:
            name = path.name if len(roots) == 1 else str(path)
            of_file, faults_of_file = _read(path, name, number)
            lines += of_file
            faults += faults_of_file
    return lines, faults


def _csv_files(root: pathlib.Path) -> tuple[list[pathlib.Path], list[Fault]]:
    directory = root / DIRECTORY
    if not directory.is_dir():
        remedy = f"data.root must name the folder that holds {DIRECTORY}/"
        return [], [Fault(str(directory), None, "", "there is no such folder", remedy)]
    files = sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        return [], [Fault(str(directory), None, "", "holds no CSV file", "put one a task there")]
    return files, []


def read_csv(path: pathlib.Path) -> tuple[list[Line], list[Fault]]:
    """Reads one CSV with a column task_id.

    Returns:
        Its lines; or none, and the one fault that keeps it from being read.
    """
    return _read(path, path.name, 0)


def _read(path: pathlib.Path, name: str, root: int) -> tuple[list[Line], list[Fault]]:
    try:
        return _parse(name, path.read_bytes(), root), []
    except FileNotFoundError:
        return [], [Fault(str(path), None, "", "there is no such file", "correct the path")]
    except _Unusable as error:
        fault, remedy = error.args
        return [], [Fault(name, None, "", fault, remedy)]


class _Unusable(Exception):
    """A CSV of which nothing can be read: (fault, remedy)."""


def _parse(name: str, data: bytes, root: int) -> list[Line]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise _Unusable(f"is not UTF-8 (line {number})", "save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    number = 1
    try:
        for record in reader:
            if record:  # a blank line is no record
                records.append((number, record))
            number = reader.line_num + 1
    except csv.Error as error:
        raise _Unusable(
            f"is not a CSV (from line {number}: {error})", "correct the quotes there"
        ) from None
    if len(records) < 2:
        raise _Unusable(
            "has a header but no rows" if records else "is empty", "add rows or remove the file"
        )
    columns = [column.strip() for column in records[0][1]]
    twice = [column for column, count in Counter(columns).items() if column and count > 1]
    if twice:
        raise _Unusable(f"has the column {twice[0]!r} twice", "keep one of them")
    if "task_id" not in columns:
        raise _Unusable(
            f"has no column task_id (it has {', '.join(columns)})", "add it, comma-separated"
        )
    return [
        Line(
            csv=name,
            number=number,
            fields=dict(zip(columns, record, strict=False)),
            excess=len(record) - len(columns),
            root=root,
        )
        for number, record in records[1:]
    ]

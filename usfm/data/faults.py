"""What is wrong with a user's files, said all at once."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable

from usfm.errors import UserError

SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of one place.

    Attributes:
        file: name of the CSV file it was found through.
        row: 1-based line of that file; None for a fault of the whole file or task, which cannot
            be put right by leaving a row out.
        field: column it concerns; "" where it is no single one.
        fault: what is wrong.
        remedy: what to do about it.
    """

    file: str
    row: int | None
    field: str
    fault: str
    remedy: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} line {self.row}"
        if self.field:
            where += f", {self.field}"
        return f"{where}: {self.fault}; {self.remedy}"


class FolderError(UserError):
    """Faults of a folder or split: the message has the first 20 and says where all of them lie.

    Attributes:
        faults: all of them.
    """

    def __init__(
        self,
        place: str | pathlib.Path,
        faults: Iterable[Fault],
        faults_file: pathlib.Path | None = None,
    ):
        self.faults = tuple(faults)
        number = len(self.faults)
        lines = [f"{number} fault{'s' if number > 1 else ''} in {place}"]
        lines += [f"  {fault}" for fault in self.faults[:SHOWN]]
        if number > SHOWN:
            lines.append(f"  and {number - SHOWN} more")
        if faults_file is not None:
            lines.append(f"All of them: {faults_file}")
        super().__init__("\n".join(lines))


def write_faults(path: pathlib.Path, faults: Iterable[Fault]) -> None:
    """Writes a CSV of file, row, field, fault, remedy, one fault a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(Fault))
        writer.writerows(dataclasses.astuple(fault) for fault in faults)

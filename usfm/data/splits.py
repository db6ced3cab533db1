"""Which rows train, which choose and which test, without one patient on two sides.

Rows of one image content, one video or one patient are one group, across all tasks: a group is a
connected component of the graph that links rows of equal content hash or equal name, in whichever
folder. Names are what regular expressions capture from the image path, and split_group of the CSV.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from usfm.data.folder import Folder, Row
from usfm.errors import UserError

PARTS = ("train", "val", "test")

# FM_UIA's names: Patient01313_Plane1_1_of_1.png, and 241010140803.zhc_150.jpg (video, frame);
# and the frames of one file, clip.dcm#12.
DEFAULT_PATTERNS = (
    r"(?:^|/)(Patient\d+)_",
    r"(?:^|/)(\d{8,}\.[^/]+)_\d+\.[^./]+$",
    r"^(.+)#\d+$",
)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The part and the group of every row of a folder.

    Attributes:
        parts: (task_id, row key) -> train, val or test.
        groups: (task_id, row key) -> name of the rows that belong together: the smallest
            patient or video name among them, else the start of the smallest content hash.
    """

    parts: dict[tuple[str, str], str]
    groups: dict[tuple[str, str], str]

    def part(self, row: Row) -> str:
        """The part of a row."""
        return self.parts[row.task_id, row.key]

    def group(self, row: Row) -> str:
        """The group of a row."""
        return self.groups[row.task_id, row.key]

    def indices(self, folder: Folder, task_id: str, part: str) -> np.ndarray:
        """The Row.index of a task's rows in a part, int64 [n], ascending."""
        rows = folder.rows[task_id]
        return np.array([row.index for row in rows if self.part(row) == part], np.int64)


def make_splits(
    folder: Folder,
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    patterns: Sequence[str] = DEFAULT_PATTERNS,
) -> Splits:
    """Splits by groups, and so that new patients and images move no old ones.

    A group's name decides its part by a hash, so the fractions are met on average only.

    Args:
        folder: whose rows to split.
        val_fraction: expected share of the groups in val.
        test_fraction: likewise in test.
        patterns: regular expressions with one capture group, searched in image paths.

    Raises:
        UserError: fractions below 0 or together 1 or more, or a pattern that is none.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"data.val_fraction {val_fraction:g} and data.test_fraction {test_fraction:g}: "
            "give 0 or more each, and less than 1 together"
        )
    groups = groups_of(folder, patterns)
    parts = {}
    for key, group in groups.items():
        digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
        place = int.from_bytes(digest) / 2**64
        in_val, in_test = place < val_fraction, place < val_fraction + test_fraction
        parts[key] = "val" if in_val else "test" if in_test else "train"
    return Splits(parts, groups)


def leaks(splits: Splits) -> list[str]:
    """The groups that straddle parts, which a given split may have: scores on them flatter."""
    seen: dict[str, set[str]] = {}
    for key, group in splits.groups.items():
        seen.setdefault(group, set()).add(splits.parts[key])
    return sorted(group for group, parts in seen.items() if len(parts) > 1)


def gaps(splits: Splits, folder: Folder) -> list[str]:
    """One message for every task that has nothing to train on, or nothing to choose by."""
    return [
        f"task {task.id!r} has no {part} rows"
        for task in folder.tasks
        for part in ("train", "val")
        if not splits.indices(folder, task.id, part).size
    ]


def groups_of(folder: Folder, patterns: Iterable[str]) -> dict[tuple[str, str], str]:
    """(task_id, row key) -> name of its group, by patterns as make_splits takes them."""
    searches = [_compile(pattern) for pattern in patterns]
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    # The lesser node becomes the root, so the root of a group is its least name, or where it
    # has none its least hash.
    for rows in folder.rows.values():
        for row in rows:
            matches = (search.search(row.image_path) for search in searches)
            nodes = [("1 content", row.content)]
            nodes += [("0 name", match[1]) for match in matches if match and match[1]]
            nodes += [("0 name", row.split_group)] if row.split_group else []
            roots = sorted(map(find, nodes))
            for root in roots[1:]:
                parents[root] = roots[0]
    groups = {}
    for rows in folder.rows.values():
        for row in rows:
            kind, name = find(("1 content", row.content))
            groups[row.task_id, row.key] = name if kind == "0 name" else name[:16]
    return groups


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"data.group_patterns: {pattern!r} is no regular expression: {error}"
        ) from None
    if compiled.groups != 1:
        raise UserError(
            f"data.group_patterns: {pattern!r} has {compiled.groups} capture groups; give it one, "
            "round the name of the patient or video"
        )
    return compiled

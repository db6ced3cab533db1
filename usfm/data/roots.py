"""The places that data.root names: folders, and a TFDS data set, which becomes a folder first."""

import pathlib

from ml_collections import ConfigDict

from usfm.data.tfds_source import export, is_prepared
from usfm.errors import UserError

TFDS = "tfds:"


def places(root: str) -> tuple[str, ...]:
    """The places of data.root, separated by commas: each a folder, or tfds:NAME.

    What is one folder as a whole is that folder, whatever commas are in its path.

    Raises:
        UserError: it names nothing, or several TFDS data sets, of which the config describes one.
    """
    if pathlib.Path(root).exists():
        return (root,)
    parts = tuple(part.strip() for part in root.split(",") if part.strip())
    if not parts:
        raise UserError(f"data.root={root!r} names no folder: give one, or several as A,B")
    if sum(part.startswith(TFDS) for part in parts) > 1:
        raise UserError(
            f"data.root={root!r}: give one TFDS data set, since data.tfds describes one; export "
            "others by runs of their own, and name the folders that these tell"
        )
    return parts


def open_roots(data: ConfigDict, cache_dir: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The folders of data.root; a TFDS data set is written as one on first use.

    Args:
        data: the config's section: root, tfds.
        cache_dir: where such a folder lies.
    """
    return tuple(
        export(place.removeprefix(TFDS), data.tfds.to_dict(), cache_dir)
        if place.startswith(TFDS)
        else pathlib.Path(place)
        for place in places(data.root)
    )


def identities(data: ConfigDict) -> frozenset[str]:
    """What tells the places of one data.root from those of another, whatever their order.

    Two splits of one TFDS data set are two places.
    """
    return frozenset(
        f"{place}@{data.tfds.split}"
        if place.startswith(TFDS)
        else str(pathlib.Path(place).resolve())
        for place in places(data.root)
    )


def are_there(data: ConfigDict) -> bool:
    """Whether all places of data.root can be read still."""
    return all(
        is_prepared(place.removeprefix(TFDS), data.tfds.data_dir)
        if place.startswith(TFDS)
        else pathlib.Path(place).exists()
        for place in places(data.root)
    )

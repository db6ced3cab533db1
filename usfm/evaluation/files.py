"""Files that are whole or absent, whenever the program is stopped."""

from etils import epath


def write_atomically(path: epath.PathLike, data: bytes) -> None:
    """Write `data` beside `path`, then move it there; the folder is made where it is missing."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    partial.write_bytes(data)
    partial.replace(path)

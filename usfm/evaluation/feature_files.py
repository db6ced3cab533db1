"""Features on disk: a .npz an image, or one Zarr array for all of them, and an index of images."""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from usfm.data.folder import Folder, Row
from usfm.data.lines import from_root
from usfm.data.unlabelled import inside
from usfm.errors import UserError
from usfm.evaluation.features import NAMES, Features
from usfm.evaluation.files import write_atomically

INDEX_FIELDS = ("index", "image_path", "height", "width")
BLOCK = 64  # images of a chunk of a Zarr array: 25 MB of a ViT-S at 256 pixels


def one_row_an_image(folder: Folder) -> list[Row]:
    """The first of the rows of each image file of a folder, whatever their tasks.

    Raises:
        UserError: files of two folders have one name, which feature files could not tell apart.
    """
    rows: dict[str, Row] = {}
    for row in itertools.chain.from_iterable(folder.rows.values()):
        other = rows.setdefault(name_of(row), row)
        if other.root != row.root:
            raise UserError(
                f"{name_of(row)} is in two of {folder.place}, and feature files cannot tell them "
                "apart: give one folder at a time, with a --workdir each"
            )
    return list(rows.values())


def name_of(row: Row) -> str:
    """A row's image file, relative to its folder or to the root of the file system."""
    return inside(from_root(row.image_path))


def write_npz(
    features: Iterable[tuple[Row, Features]], images: int, output_dir: epath.PathLike
) -> Iterator[Row]:
    """Writes output_dir/IMAGE.npz of each image, with the arrays dense, cls and mean.

    IMAGE is name_of its row. Passes the rows on.
    """
    del images
    output_dir = epath.Path(output_dir)
    for row, of_image in features:
        data = io.BytesIO()
        np.savez(data, **{name: getattr(of_image, name) for name in NAMES})
        write_atomically(output_dir / f"{name_of(row)}.npz", data.getvalue())
        yield row


def write_zarr(
    features: Iterable[tuple[Row, Features]], images: int, output_dir: epath.PathLike
) -> Iterator[Row]:
    """Writes output_dir/features.zarr, a Zarr (version 2) group of the arrays dense, cls and mean.

    Their leading axis is the images', in chunks of 64; the rest is that of Features. Passes the
    rows on.

    Args:
        features: of each image.
        images: how many there are at most; the arrays end with those that came.
        output_dir: made where it is missing.
    """
    import tensorstore as ts  # here, because few need it

    group = epath.Path(output_dir) / "features.zarr"
    write_atomically(group / ".zgroup", json.dumps({"zarr_format": 2}).encode())
    arrays, count, pairs = {}, 0, iter(features)
    while block := list(itertools.islice(pairs, BLOCK)):
        for name in NAMES:
            values = np.stack([getattr(of_image, name) for _, of_image in block])
            if name not in arrays:
                arrays[name] = ts.open(
                    {"driver": "zarr", "kvstore": _kvstore(group / name)},
                    create=True,
                    delete_existing=True,
                    dtype=ts.float32,
                    shape=(images, *values.shape[1:]),
                    chunk_layout=ts.ChunkLayout(chunk_shape=(BLOCK, *values.shape[1:])),
                ).result()
            arrays[name][count : count + len(block)].write(values).result()
        count += len(block)
        yield from (row for row, _ in block)
    for array in arrays.values():
        array.resize(exclusive_max=(count, *array.shape[1:])).result()


WRITERS: dict[str, Callable[..., Iterator[Row]]] = {"npz": write_npz, "zarr": write_zarr}


def write_index(rows: Sequence[Row], output_dir: epath.PathLike) -> None:
    """Writes index.csv: which image each position of the arrays, or each file, is of."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_FIELDS)
    for index, row in enumerate(rows):
        writer.writerow([index, row.image_path, row.height, row.width])
    write_atomically(epath.Path(output_dir) / "index.csv", text.getvalue().encode())


def _kvstore(path: epath.Path) -> str:
    text = os.fspath(path)
    return f"{text}/" if "://" in text else f"file://{os.path.abspath(text)}/"

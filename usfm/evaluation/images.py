"""Images of a folder in batches of one shape, read and resized ahead of what is done with them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from usfm.data.folder import Folder, Row
from usfm.data.image import read_image, resize_image
from usfm.data.limits import ImageError
from usfm.data.progress import progress

# Is told of a row whose image cannot be read, and why.
Unreadable = Callable[[Row, Exception], None]


def read_batches(
    folder: Folder,
    chunks: Sequence[Sequence[Row]],
    *,
    sizes: Sequence[tuple[int, int]],
    channels: int,
    batch_size: int,
    what: str,
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[list[Row], tuple[np.ndarray, ...]]]:
    """Reads the images of each chunk of rows, in threads, while the chunk before is worked on.

    Args:
        folder: the rows are of.
        chunks: of at most batch_size rows each.
        sizes: (height, width) that every image is resized to, each from the original.
        channels: 1 or 3.
        batch_size: images of a batch; a smaller chunk is filled up with black ones.
        what: is done, for the one who waits.
        unreadable: where given, rows whose image cannot be read now are handed to it, left out of
            their batch, and the rest goes on. Where not, they raise.

    Yields:
        The rows of a chunk, and for each size uint8 [batch_size, height, width, channels].
    """

    def load(row: Row) -> list[np.ndarray]:
        image = read_image(folder.image_file(row))
        return [resize_image(image, size, channels) for size in sizes]

    with ThreadPoolExecutor() as pool:
        ahead = [pool.submit(load, row) for row in chunks[0]] if chunks else []
        for number, chunk in enumerate(progress(chunks, len(chunks), what)):
            rows, batch = [], tuple(np.zeros((batch_size, *s, channels), np.uint8) for s in sizes)
            for row, future in zip(chunk, ahead, strict=True):
                try:
                    loaded = future.result()
                except (ImageError, OSError) as error:
                    if unreadable is None:
                        raise
                    unreadable(row, error)
                    continue
                for images, image in zip(batch, loaded, strict=True):
                    images[len(rows)] = image
                rows.append(row)
            if number + 1 < len(chunks):
                ahead = [pool.submit(load, row) for row in chunks[number + 1]]
            if rows:
                yield rows, batch

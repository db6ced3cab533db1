"""The answers of a prediction drawn over their images, a picture a row."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from etils import epath

from usfm.data.folder import Folder, Row
from usfm.data.image import read_image
from usfm.data.unlabelled import inside
from usfm.evaluation.files import write_atomically
from usfm.evaluation.overlay import PREDICTED, Example, caption, draw
from usfm.evaluation.prediction import Answer

QUALITY = 90  # of JPEG, in percent: a tenth of a PNG's bytes, and lines stay sharp


def write_overlays(
    answers: Iterable[tuple[Row, Answer]], folder: Folder, output_dir: epath.PathLike
) -> Iterator[tuple[Row, Answer]]:
    """Passes answers on, each drawn first to output_dir/TASK/IMAGE.jpg.

    IMAGE is the row's key without "../". The truth is not drawn. The class of a classification is
    written on its picture.
    """
    output_dir = epath.Path(output_dir)
    tasks = {task.id: task for task in folder.tasks}
    for row, answer in answers:
        image = read_image(folder.image_file(row))
        example = Example(tasks[row.task_id], row.key, image, None, answer)
        picture = draw(example)
        if words := caption(example):
            font = cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(picture, words, (8, 24), font, 0.7, PREDICTED, 2, cv2.LINE_AA)
        write_atomically(output_dir / row.task_id / f"{inside(row.key)}.jpg", _jpeg(picture))
        yield row, answer


def _jpeg(picture: np.ndarray) -> bytes:
    bgr = np.ascontiguousarray(picture[..., ::-1])
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()

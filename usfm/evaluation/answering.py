"""From a data.root to the files that answer it."""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from usfm.data.asked import LEFT_OUT, LeftOut, open_asked
from usfm.data.folder import Folder
from usfm.errors import UserError
from usfm.evaluation.overlay_files import write_overlays
from usfm.evaluation.predict import Predictor
from usfm.evaluation.submission import write_submission
from usfm.tasks import Task


def open_answerable(tasks: Sequence[Task], config: ConfigDict, left_out: pathlib.Path) -> Folder:
    """Opens data.root as open_asked does, and checks that a model of these tasks can answer it."""
    folder = open_asked(config, tasks, left_out)
    check_tasks(tasks, folder)
    return folder


def answer_all(
    predictor: Predictor,
    folder: Folder,
    output_dir: pathlib.Path,
    *,
    left_out: pathlib.Path,
    overlays: bool,
) -> str:
    """Answers every row of a folder and writes the answers in the submission's form.

    Args:
        predictor: of a model.
        folder: as open_answerable returns it.
        output_dir: made where it is missing.
        left_out: the folder in which left_out.csv says what is not answered, if there is any.
        overlays: draws the answers too, in output_dir/overlays/.

    Returns:
        What was done, in a line, with the number of rows and files left out.
    """
    missing = LeftOut(left_out / LEFT_OUT, folder.skipped)
    answers = predictor(folder, folder.rows, missing)
    if overlays:
        answers = write_overlays(answers, folder, output_dir / "overlays")
    count = write_submission(answers, folder, output_dir)
    return f"{count} rows answered, {missing}: {output_dir}"


def check_tasks(known: Sequence[Task], folder: Folder) -> None:
    """Every task of the folder must be one the model was trained on, of the same form.

    Raises:
        UserError: it names the first that is not.
    """
    by_id = {task.id: task for task in known}
    for task in folder.tasks:
        if task.id not in by_id:
            raise UserError(
                f"{folder.place} has task '{task.id}', which the model was not trained on; choose "
                f"by --config.tasks among {', '.join(by_id)}"
            )
        model = by_id[task.id]
        if (model.type, model.size) != (task.type, task.size):
            raise UserError(
                f"task '{task.id}' is {task.type} of {task.size} in {folder.place}, but the model "
                f"was trained on {model.type} of {model.size}"
            )

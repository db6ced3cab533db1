"""What prediction is asked: the rows of an FM_UIA folder, labelled or not, or bare images."""

import itertools
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from usfm import processes
from usfm.data.faults import Fault, write_faults
from usfm.data.folder import Folder, Row
from usfm.data.image_list import images_of_list
from usfm.data.lines import DIRECTORY
from usfm.data.source import cache_dir, read_roots, say
from usfm.data.unlabelled import folder_of_images
from usfm.tasks import Task
from usfm.tasks.plans import select

LEFT_OUT = "left_out.csv"


def open_asked(config: ConfigDict, tasks: Sequence[Task], workdir: pathlib.Path) -> Folder:
    """Reads data.root; rows and files that cannot be answered are in `skipped`.

    Args:
        config: data.root is an FM_UIA folder (or several, or tfds:NAME), a folder without
            csv_files, all images of which are asked, or a list of images (image_list.py).
        tasks: of the model; bare images are asked those that config.tasks chooses among them.
        workdir: where nothing can be answered, left_out.csv says why there.

    Raises:
        UserError: nothing of it can be answered, or as the readers of each form do.
    """
    root, cache = pathlib.Path(config.data.root), cache_dir(config)
    if not is_bare(root):
        return read_roots(
            config, require_labels=False, on_bad_row="skip", faults_file=workdir / LEFT_OUT
        )
    chosen = select(tasks, config.tasks)
    say(f"{root} is no FM_UIA folder: its images are asked {', '.join(t.id for t in chosen)}")
    if root.is_file():
        return images_of_list(root, tasks, chosen, cache_dir=cache)
    return folder_of_images(root, chosen, cache_dir=cache)


def is_bare(root: pathlib.Path) -> bool:
    """Whether data.root names images without the CSV files of an FM_UIA folder."""
    return root.is_file() or (root.is_dir() and not (root / DIRECTORY).exists())


class LeftOut:
    """What is not answered and why, kept in a CSV file that is there while there is any.

    Args:
        path: of the file.
        faults: known from the start.
    """

    def __init__(self, path: pathlib.Path, faults: Sequence[Fault]):
        self.path, self._faults, self._known = path, list(faults), len(faults)
        self._write()

    def __call__(self, row: Row, error: Exception) -> None:
        """Notes a row whose image could not be read when its turn came."""
        place = (row.csv, row.line, "image_path") if row.csv else (row.image_path, None, "")
        remedy = "see that the file stays where it is"
        self._faults.append(Fault(*place, f"was readable before, but: {error}", remedy))
        self._write()

    def join(self) -> None:
        """Puts together what each of several processes noted; all must call it."""
        noted = processes.gather(self._faults[self._known :])
        self._faults[self._known :] = itertools.chain.from_iterable(noted)
        self._write()

    def __len__(self) -> int:
        return len({(fault.file, fault.row) for fault in self._faults})

    def __str__(self) -> str:
        return f"{len(self)} left out (see {self.path})" if self._faults else "none left out"

    def _write(self) -> None:
        if not processes.is_first():
            return
        if self._faults:
            write_faults(self.path, self._faults)
        else:
            self.path.unlink(missing_ok=True)

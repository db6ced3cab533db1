"""Looks at a data folder: checks it, and writes what it holds as one page, DIR/data.html.

python tools/inspect_data.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

The page has counts by task, type, clinical group and part of the split, a search for leaks across
the parts, the balance of classes, the sizes of images, and examples with their labels drawn. Rows
without labels are counted; other faults end it, all of them told in DIR/bad_rows.csv, unless
data.on_bad_row=skip leaves them out.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from absl import flags
from ml_collections import config_flags

from usfm import checks, command

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, as for usfm.main.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where data.html and bad_rows.csv are written.")


def main() -> None:
    """Reads the folder and writes the page."""
    from usfm.data.source import open_folder, open_splits
    from usfm.evaluation.inspection import write_inspection

    config = command.given(_CONFIG)
    workdir = pathlib.Path(command.given(_WORKDIR)).expanduser()
    checks.check(config)
    folder = open_folder(config, workdir, require_labels=False)
    write_inspection(workdir / "data.html", folder, open_splits(config, folder))
    print(f"page: {workdir / 'data.html'}")


if __name__ == "__main__":
    command.run(main)

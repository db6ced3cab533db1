"""Checks a data folder, makes its splits and builds its store, as training would on first use.

python tools/prepare_data.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Writes DIR/splits.csv (and DIR/bad_rows.csv where rows are faulty), and the store under
data.cache_dir, which every run with the same folder, data.image_size and data.channels shares.
The store is built on all cores; a build that was killed goes on where it was. With --beam it is
built on Apache Beam instead, to the same bytes: --beam_options=runner=FlinkRunner,parallelism=8
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from absl import flags
from ml_collections import config_flags

from usfm import checks, command
from usfm.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, as for usfm.main.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where splits.csv and bad_rows.csv are written.")
_BEAM = flags.DEFINE_bool("beam", False, "Build the store on Apache Beam (extra: beam).")
_BEAM_OPTIONS = flags.DEFINE_list("beam_options", [], "The runner and its options: NAME=VALUE,...")


def main() -> None:
    """Prepares the data, and says how many rows each part has."""
    from usfm.data import beam
    from usfm.data.builder import open_store
    from usfm.data.shards import write_shards
    from usfm.data.source import cache_dir, open_folder, open_splits
    from usfm.data.splits import PARTS

    config = command.given(_CONFIG)
    workdir = pathlib.Path(command.given(_WORKDIR)).expanduser()
    if _BEAM_OPTIONS.value and not _BEAM.value:
        raise UserError("--beam_options says how, but not that: give --beam too")
    write = beam.writer(_BEAM_OPTIONS.value) if _BEAM.value else write_shards
    checks.check(config)
    folder = open_folder(config, workdir)
    splits = open_splits(config, folder, workdir)
    size = config.data.image_size
    open_store(folder, (size, size), config.data.channels, cache_dir(config), write)
    width = max(len(task.id) for task in folder.tasks)
    for task in folder.tasks:
        counts = (f"{splits.indices(folder, task.id, part).size} {part}" for part in PARTS)
        print(f"{task.id:<{width}}  {task.type:<14}  {', '.join(counts)}")
    print(f"splits: {workdir / 'splits.csv'}, store: {cache_dir(config)}")


if __name__ == "__main__":
    command.run(main)

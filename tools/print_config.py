"""Prints every field of an experiment, with what the command line changes in it.

python tools/print_config.py configs/NAME.py [--config.FIELD=VALUE ...]
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from ml_collections import config_flags

from usfm import command
from usfm import config as usfm_config
from usfm.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Not needed: CONFIG is given by itself.")


def main() -> None:
    """Prints one `FIELD = VALUE` a line."""
    if not _CONFIG.value:
        raise UserError("give a config file: python tools/print_config.py configs/NAME.py")
    for name, value in usfm_config.flat(usfm_config.to_dict(_CONFIG.value)).items():
        print(f"{name} = {json.dumps(value)}")


if __name__ == "__main__":
    # config_flags reads sys.argv itself, so that is where CONFIG has to become --config=CONFIG.
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"--config={sys.argv[1]}"
    command.run(main)

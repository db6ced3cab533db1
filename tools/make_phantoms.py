"""Writes the built-in phantom tasks as an FM_UIA folder.

python tools/make_phantoms.py ROOT [--kind=bmode] [--rows=100] [--seed=0]

Kinds: bmode, 11 tasks of as many organs; related, four tasks of known relatedness on one kind of
image (usfm/data/phantoms/related.py).
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from usfm.data.phantoms import RELATED, write_folder
from usfm.data.phantoms.catalogue import PHANTOMS
from usfm.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """Writes the folder, or finds it there already."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="the folder to be made")
    parser.add_argument("--kind", choices=("bmode", "related"), default="bmode")
    parser.add_argument("--rows", type=int, default=100, help="images of each task (100)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    arguments = parser.parse_args(argv)
    phantoms = RELATED if arguments.kind == "related" else PHANTOMS
    try:
        write_folder(arguments.root, rows=arguments.rows, seed=arguments.seed, phantoms=phantoms)
    except (UserError, FileExistsError) as error:
        sys.exit(f"make_phantoms: {error}")
    up_to = "up to " if any(phantom.share < 1 for phantom in phantoms.values()) else ""
    print(f"{len(phantoms)} phantom tasks of {up_to}{arguments.rows} images: {arguments.root}")


if __name__ == "__main__":
    main()

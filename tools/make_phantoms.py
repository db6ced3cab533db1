"""Writes the built-in phantom tasks as an FM_UIA folder.

python tools/make_phantoms.py ROOT [--kind=bmode] [--rows=100] [--seed=0]
python tools/make_phantoms.py ROOT --kind=signs [--relatedness=1] ...
python tools/make_phantoms.py ROOT --kind=fm_uia [--difficulty=0.3] [--relatedness=1] ...

Kinds: bmode, 11 tasks of as many organs; related, four tasks of known relatedness on one kind of
image (usfm/data/phantoms/related.py); with groups and conflicts that are planted by the seed and
told in ROOT/planted.json: signs, ten small tasks on one kind of image, or four unrelated ones
(usfm/data/phantoms/signs.py), and fm_uia, all 27 tasks of FM_UIA (usfm/data/phantoms/planted.py).
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from usfm.data.phantoms import RELATED, write_folder, write_planted, write_signs
from usfm.data.phantoms.catalogue import PHANTOMS
from usfm.data.phantoms.planted import IMAGES
from usfm.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """Writes the folder, or finds it there already."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="the folder to be made")
    parser.add_argument("--kind", choices=("bmode", "related", "signs", "fm_uia"), default="bmode")
    parser.add_argument("--rows", type=int, default=100, help="images of the largest task (100)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    knobs = parser.add_argument_group("of planted kinds")
    knobs.add_argument("--difficulty", type=float, help="of fm_uia's targets, from 0 to 1 (0.3)")
    knobs.add_argument(
        "--relatedness", type=float, help="what tasks of a group share, 0 to 1; of signs 0 or 1 (1)"
    )
    arguments = vars(parser.parse_args(argv))
    root, kind, rows = arguments.pop("root"), arguments.pop("kind"), arguments["rows"]
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        if kind == "fm_uia":
            write_planted(root, **given)
            number, up_to = len(IMAGES), "up to "
        elif "difficulty" in given:
            raise UserError("--difficulty goes with --kind=fm_uia")
        elif kind == "signs":
            number, up_to = write_signs(root, **given), ""
        elif "relatedness" in given:
            raise UserError("--relatedness goes with --kind=fm_uia and --kind=signs")
        else:
            phantoms = RELATED if kind == "related" else PHANTOMS
            write_folder(root, **given, phantoms=phantoms)
            number = len(phantoms)
            up_to = "up to " if any(each.share < 1 for each in phantoms.values()) else ""
    except (UserError, FileExistsError) as error:
        sys.exit(f"make_phantoms: {error}")
    print(f"{number} phantom tasks of {up_to}{rows} images: {root}")


if __name__ == "__main__":
    main()

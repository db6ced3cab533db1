"""Draws the example images of a report side by side, as one small PNG: docs/quickstart.png.

python tools/contact_sheet.py runs/quickstart/report.html docs/quickstart.png
"""

import argparse
import base64
import html
import io
import itertools
import pathlib
import re
import sys

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 4
SIDE = 264  # of an image, pixels
LABEL = 26  # height of its title
GAP = 6
INK, PAPER = (228, 233, 239), (16, 22, 29)
COLOURS = 128  # of the PNG: speckle compresses badly

# As usfm/evaluation/report.py writes an example.
FIGURE = re.compile(
    r'<figure data-task="(?P<task>[^"]+)" data-type="(?P<type>\w+)">.*?base64,(?P<image>[^"]+)"'
)


def examples(report: str) -> list[tuple[str, Image.Image]]:
    """Task and picture of an example of every task, of its cases the one in the middle.

    Classifications are left out: nothing is drawn on them.
    """
    drawn = [match for match in FIGURE.finditer(report) if match["type"] != "classification"]
    shown = []
    for task_id, of_task in itertools.groupby(drawn, lambda match: match["task"]):
        cases = list(of_task)
        data = base64.b64decode(cases[(len(cases) - 1) // 2]["image"])
        shown.append((html.unescape(task_id), Image.open(io.BytesIO(data)).convert("RGB")))
    return shown


def sheet(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """The pictures in rows of COLUMNS, each under its title."""
    rows = -(-len(pictures) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + LABEL + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for place, (title, picture) in enumerate(pictures):
        left = GAP + place % COLUMNS * (SIDE + GAP)
        top = GAP + place // COLUMNS * (SIDE + LABEL + GAP)
        draw.text((left + 2, top + 4), title, INK, ImageFont.load_default(14))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        across, down = (SIDE - length for length in picture.size)
        page.paste(picture, (left + across // 2, top + LABEL + down // 2))
    # The octree keeps the few pixels of the outlines coloured; the others make them grey.
    return page.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def main(argv: list[str] | None = None) -> None:
    """Reads a report and writes the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=pathlib.Path, help="report.html of a run")
    parser.add_argument("png", type=pathlib.Path, help="where the sheet is written")
    arguments = parser.parse_args(argv)
    pictures = examples(arguments.report.read_text(encoding="utf-8"))
    if not pictures:
        sys.exit(f"contact_sheet: {arguments.report} shows no example with something drawn on it")
    sheet(pictures).save(arguments.png, optimize=True)
    print(f"{len(pictures)} examples: {arguments.png}")


if __name__ == "__main__":
    main()

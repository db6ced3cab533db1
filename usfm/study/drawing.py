"""How the figures of a study look, and how they become SVG: the same bytes whenever drawn."""

import io
import warnings
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_SETTINGS = {
    "svg.hashsalt": "usfm",
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "text.parse_math": False,  # task ids are shown as they are
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5d6b7a",
    "axes.labelcolor": "#1d2733",
    "xtick.color": "#1d2733",
    "ytick.color": "#1d2733",
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))

DIVERGING = "RdBu"  # red = harm, blue = gain; told apart by the colour-blind as well
INK, SOFT, LINE, BAND = "#1d2733", "#5d6b7a", "#c3ccd6", "#f1f4f7"
# Of Okabe and Ito, for the colour-blind; markers tell them apart in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*"


# Around everything that draws: Matplotlib looks settings up when a part is made.
styled = matplotlib.rc_context(_SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure((width, height), layout="constrained")


@styled
def svg(figure: Figure) -> str:
    """The figure as an SVG file."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        # Matplotlib only measures the text; the reader's fonts draw it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(data, format="svg", metadata=_NO_METADATA)
    return data.getvalue().decode()


def inline(text: str, label: str) -> str:
    """An SVG file as an element of a page.

    Args:
        text: of the file.
        label: escaped, for those who have it read aloud.
    """
    element = text[text.index("<svg") :]
    for address in ("http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"):
        for name in ("xmlns:xlink", "xmlns"):
            element = element.replace(f' {name}="{address}"', "")
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def style(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm."""
    return {
        arm: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, arm in enumerate(arms)
    }


def on(colour: tuple[float, ...]) -> str:
    """The colour of text on a cell of this one."""
    red, green, blue = colour[:3]
    return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"


def bands(axes: Axes, count: int) -> None:
    """Shades every other one of so many rows, so that the eye keeps to one."""
    for row in range(0, count, 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND, zorder=0, linewidth=0)

"""What every page promises to its readers, whatever it holds."""

import itertools
import re

import pytest

from usfm.evaluation.experts import DARKEST
from usfm.evaluation.page import STYLE, page, table

PALETTES = [
    dict(re.findall(r"--(\w+): (#\w+)", rules))
    for rules in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
]


def rgb(colour):
    return [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]


def luminance(channels):
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    dark, light = sorted([luminance(a), luminance(b)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", PALETTES, ids=["light", "dark"])
def test_text_and_curves_stand_out_from_what_is_behind_them(palette):
    """WCAG 2.2 asks 4.5 of text (1.4.3) and 3 of drawings (1.4.11)."""
    colours = {name: rgb(colour) for name, colour in palette.items()}
    texts, grounds = ("ink", "soft", "accent"), ("page", "card")
    for text, ground in [*itertools.product(texts, grounds), ("ink", "best")]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("second", "third", "fourth"):
        assert contrast(colours[line], colours["card"]) >= 3, line
    share = DARKEST / 100
    pairs = zip(colours["accent"], colours["card"], strict=True)
    darkest = [share * a + (1 - share) * b for a, b in pairs]
    assert contrast(colours["ink"], darkest) >= 4.5


def test_sections_are_reached_by_links_and_left_out_where_empty():
    text = page("a <run>", "", [("All results", "<p>x</p>"), ("None", "")])
    assert 'href="#all-results"' in text
    assert 'id="all-results"' in text
    assert "None" not in text
    assert "a &lt;run&gt;" in text


def test_a_table_says_what_it_holds():
    text = table('a "b"', ["name", "n"], ["<tr><td>x</td><td>1</td></tr>"], 1)
    assert 'aria-label="a &quot;b&quot;"' in text
    assert text.count('scope="col"') == 2

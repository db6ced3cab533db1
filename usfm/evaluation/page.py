"""A self-contained page: its look, and the pieces that reports are made of.

It needs no network and no script, fits a phone, follows the reader's choice of light or dark, and
is read, walked through and scrolled without a mouse.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #566473; --line: #dde3ea;
  --page: #f6f8fa; --card: #ffffff; --accent: #0a66b0; --best: #e6f2fb; --second: #b35309;
  --third: #067a5b; --fourth: #a13d86; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #97a5b4;
  --line: #2d3846; --page: #10161d; --card: #18212b; --accent: #56b4f5; --best: #1c3a52;
  --second: #f0a35c; --third: #4cc9a0; --fourth: #e39bd0; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .3rem .6rem; background: var(--card); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-top: .75rem; font-size: .9rem; }
nav a { padding: .2rem 0; }
section { scroll-margin-top: 1rem; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.2rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; overflow-wrap: anywhere; }
p, li, figcaption { color: var(--soft); margin: .25rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); }
tr.more td { border-top: 0; padding-top: 0; color: var(--soft); font-size: .9rem; }
.number { text-align: right; }
.number small { color: var(--soft); margin-left: .5rem; }
.best { font-weight: 650; color: var(--ink); }
.best span { background: var(--best); border-radius: .3rem; padding: .05rem .4rem;
  margin: 0 -.4rem; }
.best small { font-weight: 400; margin-left: .9rem; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; overflow-wrap: anywhere; font-size: .85rem; }
figure b { color: var(--ink); font-size: .95rem; }
figure img { display: block; width: 100%; height: 15rem; object-fit: contain; margin: .5rem 0;
  background: #000; border-radius: .3rem; }
svg { display: block; width: 100%; margin-top: .4rem; }
.axis { stroke: var(--line); }
.label { fill: var(--soft); font-size: 11px; }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: var(--accent); }
.faint { opacity: .35; stroke-width: 1.2; }
.key { display: inline-block; margin-left: .6rem; width: .8em; height: .8em;
  border-radius: .2em; }
summary { cursor: pointer; color: var(--accent); margin: .75rem 0; }
code { font-size: .85rem; }
@media (max-width: 40rem) { th, td { padding: .4rem .5rem; } }
@media print {
  body { max-width: none; padding: 0; font-size: .8rem; }
  nav, .skip { display: none; }
  .scroll { overflow: visible; }
  figure, tr, svg { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


def page(title: str, lead: str, sections: Iterable[tuple[str, str]], style: str = "") -> str:
    """The page as text.

    Args:
        title: plain text.
        lead: HTML below the title.
        sections: heading and HTML; those without any are left out.
        style: rules beside STYLE.
    """
    name = html.escape(title)
    shown = [(t, re.sub(r"\W+", "-", t.lower()), text) for t, text in sections if text]
    links = "".join(f'<a href="#{id}">{t}</a>' for t, id, _ in shown)
    body = "".join(
        f'<section id="{id}" aria-labelledby="{id}-title"><h2 id="{id}-title">{t}</h2>{text}'
        "</section>\n"
        for t, id, text in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{name} · usfm</title><style>{STYLE}{style}</style></head>\n<body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        f'<header><h1>{name}</h1>{lead}<nav aria-label="Sections">{links}</nav></header>\n'
        f'<main id="content" tabindex="-1">{body}</main></body></html>\n'
    )


def table(label: str, head: Sequence[str], rows: Sequence[str], numbers: int) -> str:
    """A table, in a box that it scrolls in where it is wider than the page.

    Args:
        label: plain text: what it holds, for those who have it read aloud.
        head: plain text by column.
        rows: whole tr elements.
        numbers: how many of the last columns are numbers.
    """
    first = len(head) - numbers
    cells = "".join(
        f'<th scope="col" class="number">{name}</th>'
        if i >= first
        else f'<th scope="col">{name}</th>'
        for i, name in enumerate(html.escape(name) for name in head)
    )
    return scrolled(
        label,
        f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
    )


def scrolled(label: str, content: str, kind: str = "") -> str:
    """A box that scrolls sideways, by touch, mouse or, once it has the focus, the arrow keys.

    Args:
        label: plain text: what it holds, for those who have it read aloud.
        content: HTML.
        kind: further classes of the box.
    """
    return (
        f'<div class="{f"scroll {kind}".strip()}" role="region" tabindex="0" '
        f'aria-label="{html.escape(label)}">{content}</div>'
    )


def folded(summary: str, content: str) -> str:
    """HTML that is shown when its summary, plain text, is opened."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def picture(pixels: np.ndarray, label: str) -> str:
    """An image as an element.

    Args:
        pixels: uint8 [h, w, 3] RGB.
        label: plain text, for those who have it read aloud.
    """
    data = io.BytesIO()
    # Without subsampling, or thin coloured lines fade.
    Image.fromarray(pixels).save(data, "JPEG", quality=85, subsampling=0)
    encoded = base64.b64encode(data.getvalue()).decode()
    height, width = pixels.shape[:2]
    return (
        f'<img alt="{html.escape(label)}" width="{width}" height="{height}" decoding="async" '
        f'src="data:image/jpeg;base64,{encoded}"/>'
    )

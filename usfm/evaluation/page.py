"""A self-contained page: its look, and the pieces that reports are made of."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea;
  --page: #f6f8fa; --card: #ffffff; --accent: #0a6ebd; --best: #e6f2fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #97a5b4; --line: #2d3846;
  --page: #10161d; --card: #18212b; --accent: #56b4f5; --best: #1c3a52; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.2rem; }
p, li, figcaption { color: var(--soft); margin: .25rem 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); }
tr.more td { border-top: 0; padding-top: 0; color: var(--soft); font-size: .9rem; }
.number { text-align: right; }
.best { font-weight: 650; color: var(--ink); }
.best span { background: var(--best); border-radius: .3rem; padding: .05rem .4rem;
  margin-right: -.4rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
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
.key { display: inline-block; margin-left: .6rem; width: .8em; height: .8em;
  border-radius: .2em; }
summary { cursor: pointer; color: var(--accent); margin-bottom: .75rem; }
code { font-size: .85rem; }
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
    body = "".join(f"<section><h2>{t}</h2>{text}</section>\n" for t, text in sections if text)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{name} · usfm</title><style>{STYLE}{style}</style></head>\n<body>"
        f"<header><h1>{name}</h1>{lead}</header>\n{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[str], numbers: int) -> str:
    """A table whose last `numbers` columns are numbers; `rows` are whole tr elements."""
    first = len(head) - numbers
    cells = "".join(
        f'<th class="number">{name}</th>' if i >= first else f"<th>{name}</th>"
        for i, name in enumerate(html.escape(name) for name in head)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def picture(pixels: np.ndarray, label: str) -> str:
    """An image as an element.

    Args:
        pixels: uint8 [h, w, 3] RGB.
        label: plain text, for those who have it read aloud.
    """
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=88, subsampling=0)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(label)}" src="data:image/jpeg;base64,{encoded}"/>'

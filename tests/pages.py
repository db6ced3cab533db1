"""What tests see of a page: its text by section as a reader has it, and how a browser draws it."""

import html
import html.parser
import json
import pathlib
import re
import subprocess
from typing import Any

from PIL import Image

# What may close itself: elements of HTML that have no content, and those of SVG.
VOID = {"meta", "br", "img", "path", "polyline", "circle", "rect", "use", "image", "g"}

# Runs before anything else on a page, and leaves what it saw where --dump-dom shows it.
WATCH = """<script>
const faults = [];
addEventListener("error", e => faults.push(String(e.message || e.target.outerHTML)), true);
addEventListener("load", () => {
  const root = document.documentElement;
  const all = [...document.querySelectorAll("body *")];
  const sizes = [...document.querySelectorAll("svg, img")].map(e => e.getBoundingClientRect());
  const scrolls = e =>
    e.scrollWidth > e.clientWidth && /auto|scroll/.test(getComputedStyle(e).overflowX);
  const reached = all.filter(e => e.tabIndex >= 0);
  reached[0].focus();
  top.document.documentElement.dataset.seen = JSON.stringify({
    faults, overflows: root.scrollWidth > innerWidth,
    drawn: sizes.filter(size => size.width > 0 && size.height > 0).length,
    background: getComputedStyle(document.body).backgroundColor,
    out_of_reach: all.filter(e => scrolls(e) && e.tabIndex < 0).map(e => e.outerHTML.slice(0, 99)),
    scrolling: all.filter(scrolls).length,
    first: [reached[0].textContent, reached[0].getBoundingClientRect().left >= 0],
    height: root.scrollHeight});
  reached[0].blur();
  document.getElementById("{section}")?.scrollIntoView({behavior: "instant"});
});</script>"""
# A window is 500 pixels wide or more, a frame in it of any width.
FRAME = """<!DOCTYPE html><html style="color-scheme: light dark"><body style="margin: 0"><iframe
style="border: 0" width="{width}" height="{height}" srcdoc="{page}"></iframe></body></html>"""


class Page(html.parser.HTMLParser):
    """A page as it reads, and a check that every element is closed in order.

    Attributes:
        sections: text by heading; "" = what stands before the first.
        images: addresses of the images, by heading.
        figures: labels of the drawings that have one.
        curves: number of lines drawn.
    """

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {"": ""}
        self.images: dict[str, list[str]] = {}
        self.figures: list[str] = []
        self.curves = 0
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "svg" and (label := dict(attrs).get("aria-label")):
            self.figures.append(label)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID, tag
        self.curves += tag == "polyline"
        if tag == "img":
            self.images.setdefault(self.section, []).append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.section, self.sections[data] = data, ""
        elif "style" not in self.open:
            self.sections[self.section] += f" {data}"


def browse(
    chromium: str,
    page: pathlib.Path,
    size: tuple[int, int],
    *,
    scratch: pathlib.Path,
    dark: bool = False,
    section: str = "",
) -> dict[str, Any]:
    """Opens a page in Chromium.

    Args:
        chromium: the program.
        page: the file.
        size: width and height of the window in pixels.
        scratch: a folder for what the browser writes.
        dark: whether the reader prefers dark pages.
        section: id of the element that the picture begins with; "" = the top of the page.

    Returns:
        What WATCH saw; "console": its lines; "picture": of the window, an RGB image.
    """
    width, height = size
    watch = WATCH.replace("{section}", section)
    text = html.escape(page.read_text().replace("<head>", f"<head>{watch}", 1))
    watched = scratch / "watched.html"
    watched.write_text(FRAME.format(width=width, height=height, page=text))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    arguments += [f"--window-size={max(width, 500)},{height}", "--hide-scrollbars", "--dump-dom"]
    arguments += [f"--user-data-dir={scratch / 'profile'}"]
    arguments += [f"--screenshot={scratch / 'screenshot.png'}"]
    arguments += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [chromium, *arguments, watched.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stdout[:500] + done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    with Image.open(scratch / "screenshot.png") as picture:
        picture = picture.convert("RGB").crop((0, 0, width, height))
    return json.loads(html.unescape(seen[1])) | {"console": console, "picture": picture}

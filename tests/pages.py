"""What tests see of a page: its text by section as a reader has it, and how a browser draws it."""

import html
import html.parser
import json
import pathlib
import re
import subprocess
from typing import Any

# What may close itself: elements of HTML that have no content, and those of SVG.
VOID = {"meta", "br", "img", "path", "polyline", "circle", "rect", "use", "image", "g"}

# Runs before anything else on a page, and leaves what it saw where --dump-dom shows it.
WATCH = """<script>
const faults = [];
addEventListener("error", e => faults.push(String(e.message || e.target.outerHTML)), true);
addEventListener("load", () => {
  const root = document.documentElement;
  const sizes = [...document.querySelectorAll("svg, img")].map(e => e.getBoundingClientRect());
  root.dataset.seen = JSON.stringify({
    faults, overflows: root.scrollWidth > innerWidth,
    drawn: sizes.filter(size => size.width > 0 && size.height > 0).length,
    background: getComputedStyle(document.body).backgroundColor});
});</script>"""


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
    chromium: str, page: pathlib.Path, scratch: pathlib.Path, width: int, *, dark: bool = False
) -> dict[str, Any]:
    """Opens a page in Chromium, in a window of so many pixels (500 or more).

    Args:
        chromium: the program.
        page: the file.
        scratch: a folder for what the browser writes.
        width: of the window.
        dark: whether the reader prefers dark pages.
    """
    watched = scratch / "watched.html"
    watched.write_text(page.read_text().replace("<head>", f"<head>{WATCH}", 1))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    arguments += [f"--window-size={width},900", f"--user-data-dir={scratch / 'profile'}"]
    arguments += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
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
    return json.loads(html.unescape(seen[1])) | {"console": console}


def check_drawn(chromium: str, page: pathlib.Path, drawings: int, *, scratch: pathlib.Path) -> None:
    """Opens a page wide, narrow and dark: it must draw everything, fit, and report no fault."""
    wide = browse(chromium, page, scratch, 1200)
    narrow = browse(chromium, page, scratch, 500)
    dark = browse(chromium, page, scratch, 1200, dark=True)
    for seen in (wide, narrow, dark):
        assert (seen["faults"], seen["console"], seen["overflows"]) == ([], [], False)
        assert seen["drawn"] == drawings > 0
    assert wide["background"] != dark["background"]

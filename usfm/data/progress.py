"""Showing that long work goes on."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10


def progress(items: Iterable[Item], total: int, what: str, before: int = 0) -> Iterator[Item]:
    """Passes items on, with a bar on a terminal and now and then a plain line elsewhere.

    Nothing is shown of work that is quick.

    Args:
        items: what is worked on.
        total: how many there are, with those before.
        what: what is done, in a word or two.
        before: how many an earlier run had done.
    """
    if sys.stderr.isatty():
        bar = tqdm.tqdm(items, desc=what, total=total, initial=before, delay=1, leave=False)
        yield from bar
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=before + 1):
        yield item
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

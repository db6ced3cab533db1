"""Showing that long work goes on."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Passes items on, with a bar on a terminal and now and then a plain line elsewhere.

    Nothing is shown of work that is quick.

    Args:
        items: what is worked on.
        total: how many there are.
        what: what is done, in a word or two.
    """
    if sys.stderr.isatty():
        yield from tqdm.tqdm(items, desc=what, total=total, delay=1, leave=False)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

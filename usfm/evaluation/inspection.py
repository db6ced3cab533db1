"""data.html: one self-contained page that says what a data folder holds."""

import collections
import concurrent.futures
import html
import itertools
from collections.abc import Iterable, Sequence

from etils import epath

import usfm
from usfm.data.folder import Folder, Row
from usfm.data.image import read_image
from usfm.data.progress import progress
from usfm.data.splits import PARTS, Splits
from usfm.evaluation.balance import Share, shares
from usfm.evaluation.files import write_atomically
from usfm.evaluation.leaks import Check, check_leaks
from usfm.evaluation.overlay import Example, caption, draw
from usfm.evaluation.page import folded, page, picture, table
from usfm.evaluation.prediction import truth
from usfm.tasks import Task

EXAMPLES = 8  # of a task
SIDE = 320  # longest side of an example in pixels: sharp at twice the size it is shown at
BINS = 12  # of the sizes, at most
PLURALS = {"point": "s", "class": "es"}
STYLE = """
.sheet { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.sheet figure { padding: .4rem; }
.sheet figure img { height: 9rem; margin: 0 0 .3rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .3rem .8rem; margin: .5rem 0 0;
  font-variant-numeric: tabular-nums; }
dt { color: var(--soft); white-space: nowrap; }
dd { margin: 0; }
dd i { display: block; height: .35rem; min-width: 1px; background: var(--accent);
  border-radius: .2rem; }
.well, .ill { font-weight: 650; }
"""


def write_inspection(path: epath.PathLike, folder: Folder, splits: Splits) -> None:
    """Write the page; it needs no network.

    Args:
        path: of the page.
        folder: what read_folder returned, with or without labels.
        splits: of that folder.
    """
    sections = [
        ("Tasks", _tasks(folder, splits)),
        ("Types and clinical groups", _kinds(folder, splits)),
        ("Leaks", "".join(map(_checked, check_leaks(folder, splits)))),
        ("Labels", _labels(folder)),
        ("Image sizes", _sizes(folder)),
        ("Examples", _examples(folder)),
        ("Rows left out", _skipped(folder)),
    ]
    rows = [row for of_task in folder.rows.values() for row in of_task]
    images = len({row.content for row in rows})
    lead = (
        f"<p>{len(rows):,} rows on {images:,} different images in {len(folder.tasks)} tasks, usfm "
        f"{usfm.__version__}</p>" + "".join(f"<p>{html.escape(str(r))}</p>" for r in folder.roots)
    )
    write_atomically(path, page("Data", lead, sections, STYLE).encode())


def _tasks(folder: Folder, splits: Splits) -> str:
    lines = []
    for task in folder.tasks:
        rows = folder.rows[task.id]
        unit = "point" if task.type == "regression" else "class"
        counts = (
            len(rows),
            len({row.content for row in rows}),
            len({splits.group(row) for row in rows}),
            sum(not row.labelled for row in rows),
            *_by_part(rows, splits),
        )
        labels = f"{task.size} {unit}{'' if task.size == 1 else PLURALS[unit]}"
        lines.append(_line((task.id, task.type, task.group, labels), counts))
    head = ("task", "type", "clinical group", "labels", "rows", "images", "groups", "unlabelled")
    return (
        table("Tasks", [*head, *PARTS], lines, 4 + len(PARTS))
        + "<p>Images: different ones. Groups: "
        "patients, videos or images that stay on one side of every split.</p>"
    )


def _kinds(folder: Folder, splits: Splits) -> str:
    kinds: dict[tuple[str, str], list[Task]] = {}
    for task in folder.tasks:
        kinds.setdefault(("type", task.type), []).append(task)
    for task in folder.tasks:
        kinds.setdefault(("clinical group", task.group), []).append(task)
    lines = []
    for kind, tasks in kinds.items():
        rows = [row for task in tasks for row in folder.rows[task.id]]
        lines.append(_line(kind, (len(tasks), len(rows), *_by_part(rows, splits))))
    return table(
        "Types and clinical groups", ["", "name", "tasks", "rows", *PARTS], lines, 2 + len(PARTS)
    )


def _by_part(rows: Sequence[Row], splits: Splits) -> list[int]:
    counts = collections.Counter(map(splits.part, rows))
    return [counts[part] for part in PARTS]


def _line(words: Iterable[str], counts: Iterable[int]) -> str:
    cells = "".join(f"<td>{html.escape(word)}</td>" for word in words)
    numbers = "".join(f'<td class="number">{count:,}</td>' for count in counts)
    return f"<tr>{cells}{numbers}</tr>"


def _checked(check: Check) -> str:
    if not check.count:
        return f'<p><span class="well">✓</span> {html.escape(check.name)}</p>'
    places = "".join(f"<li>{html.escape(place)}</li>" for place in check.found)
    more = check.count - len(check.found)
    return (
        f'<p><span class="ill">✗</span> {html.escape(check.name)} Untrue of {check.count:,}:</p>'
        f"<ul>{places}{f'<li>and {more:,} more</li>' if more else ''}</ul>"
    )


def _labels(folder: Folder) -> str:
    cards = "".join(_card(task.id, shares(folder, task)) for task in folder.tasks)
    return f'<div class="cards">{cards}</div>'


def _card(name: str, of: Sequence[Share]) -> str:
    lines = "".join(
        f"<dt>{html.escape(each.name)}</dt><dd>{html.escape(each.count)}"
        f'<i style="width: {each.share:.2%}"></i></dd>'
        for each in of
    )
    said = f"<dl>{lines}</dl>" if of else "<figcaption>no labels</figcaption>"
    return f"<figure><b>{html.escape(name)}</b>{said}</figure>"


def _sizes(folder: Folder) -> str:
    """Each image once: how long their longer sides are, and the sizes of each task."""
    rows = {row.content: row for of_task in folder.rows.values() for row in of_task}
    sides = [max(row.height, row.width) for row in rows.values()]
    width = next(w for w in (1 << k for k in range(5, 64)) if _bins(sides, w) <= BINS)
    counts = collections.Counter(side // width for side in sides)
    largest = max(counts.values())
    histogram = [
        Share(
            f"{place * width:,} to {(place + 1) * width - 1:,} px",
            counts[place] / largest,
            f"{counts[place]:,}",
        )
        for place in range(min(counts), max(counts) + 1)
    ]
    lines = []
    for task in folder.tasks:
        of_task = {row.content: (row.width, row.height) for row in folder.rows[task.id]}
        sizes = collections.Counter(of_task.values())
        common, number = sizes.most_common(1)[0]
        ordered = sorted(sizes, key=lambda size: size[0] * size[1])
        told = [f"{w} x {h}" for w, h in (ordered[0], common, ordered[-1])]
        told[1] += f" ({number / len(of_task):.0%})"
        lines.append(_line((task.id, *told), (len(sizes),)))
    head = ["task", "smallest", "most common", "largest", "different"]
    return (
        f'<div class="cards">{_card("longer side of all images", histogram)}</div>'
        f"<h3>Width x height in pixels</h3>{table('Image sizes', head, lines, 1)}"
    )


def _bins(sides: Sequence[int], width: int) -> int:
    return max(sides) // width - min(sides) // width + 1


def _examples(folder: Folder) -> str:
    chosen = [(task, row) for task in folder.tasks for row in _spread(folder.rows[task.id])]

    def figure(pair: tuple[Task, Row]) -> str:
        task, row = pair
        label = truth(folder, task, row) if row.labelled else None
        example = Example(task, row.key, read_image(folder.image_file(row)), label)
        said = "<br/>".join(
            html.escape(text)
            for text in (caption(example) if label else "no label", row.key)
            if text
        )
        shown = picture(draw(example, SIDE), f"{task.id} {row.key}")
        return f"<figure>{shown}<figcaption>{said}</figcaption></figure>"

    with concurrent.futures.ThreadPoolExecutor() as pool:
        figures = list(progress(pool.map(figure, chosen), len(chosen), "drawing examples"))
    of_task = itertools.groupby(zip(chosen, figures, strict=True), lambda pair: pair[0][0].id)
    return "".join(
        f'<h3>{html.escape(id)}</h3><div class="sheet">{"".join(f for _, f in pairs)}</div>'
        for id, pairs in of_task
    )


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Some rows from all over a task, and of all its classes where it has such."""
    classes: dict[tuple[bool, int], list[Row]] = {}
    for row in rows:
        classes.setdefault((not row.labelled, row.label or 0), []).append(row)
    each = max(1, EXAMPLES // len(classes))
    return _evenly([row for c in sorted(classes) for row in _evenly(classes[c], each)], EXAMPLES)


def _evenly(rows: Sequence[Row], number: int) -> list[Row]:
    number = min(number, len(rows))
    return [rows[k * len(rows) // number] for k in range(number)]


def _skipped(folder: Folder) -> str:
    if not folder.skipped:
        return ""
    lines = "".join(f"<li>{html.escape(str(fault))}</li>" for fault in folder.skipped)
    number = len(folder.skipped)
    summary = f"{number:,} fault{'s' if number > 1 else ''}"
    return folded(summary, f"<ul>{lines}</ul>")

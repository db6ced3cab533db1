"""From the text of a line to its label."""

import dataclasses
import json
import math

from usfm.data.faults import Fault
from usfm.data.lines import Line
from usfm.tasks import Task

BOX = ("x_min", "y_min", "x_max", "y_max")


@dataclasses.dataclass(frozen=True)
class Label:
    """What a line says of its image; fields of other types, and what is not given, are empty.

    Attributes:
        mask_path: of a segmentation line.
        label: class of a classification line.
        box: xyxy in pixels.
        points: x, y in pixels, None where missing.
    """

    mask_path: str = ""
    label: int | None = None
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float] | None, ...] = ()


def columns(task: Task) -> tuple[str, ...]:
    """The columns that hold the label of a task."""
    return {
        "segmentation": ("mask_path",),
        "classification": ("mask",),
        "detection": BOX,
        "regression": tuple(f"point_{k}_xy" for k in range(1, task.num_points + 1)),
    }[task.type]


def parse_label(line: Line, task: Task, required: bool) -> tuple[Label, list[Fault]]:
    """Reads the label of a line.

    Args:
        line: with or without label columns.
        task: the line's.
        required: an empty label is a fault. An empty mask_path always is, since the submission
            is written under it.

    Returns:
        The label, and what is wrong with it apart from the image's size.
    """
    text = {column: line.fields.get(column, "").strip() for column in columns(task)}
    if not any(text.values()):
        if required or task.type == "segmentation":
            field = columns(task)[0]
            return Label(), [line.fault(field, "is empty", "give a label or remove the row")]
        return Label(points=(None,) * task.num_points), []
    if task.type == "segmentation":
        return Label(mask_path=line.fields["mask_path"]), []
    if task.type == "classification":
        return _class(line, task, text["mask"])
    if task.type == "detection":
        return _box(line, text)
    return _points(line, text)


def outside(line: Line, label: Label, height: int, width: int) -> list[Fault]:
    """The faults of coordinates that lie outside an image of this size; its edges are inside."""
    remedy = f"give pixels of the original image, which is {width} x {height} (width x height)"
    faults = []
    if label.box is not None:
        for field, value, end in zip(BOX, label.box, (width, height) * 2, strict=True):
            if not 0 <= value <= end:
                faults.append(line.fault(field, f"the box is outside ({value:g})", remedy))
    for k, point in enumerate(label.points, start=1):
        if point is not None and not (0 <= point[0] <= width and 0 <= point[1] <= height):
            fault = f"the point is outside ({point[0]:g}, {point[1]:g})"
            faults.append(line.fault(f"point_{k}_xy", fault, remedy))
    return faults


def whole_number(text: str) -> int | None:
    """Reads "2" or "2.0"; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _class(line: Line, task: Task, text: str) -> tuple[Label, list[Fault]]:
    value = whole_number(text)
    last = task.num_classes - 1
    remedy = f"give a whole number from 0 to {last}"
    if value is None:
        return Label(), [line.fault("mask", f"{text!r} is not a whole number", remedy)]
    if not 0 <= value <= last:
        return Label(), [line.fault("mask", f"class {value} is out of range", remedy)]
    return Label(label=value), []


def _box(line: Line, text: dict[str, str]) -> tuple[Label, list[Fault]]:
    faults = []
    values: dict[str, float] = {}
    for field in BOX:
        try:
            values[field] = float(text[field])
        except ValueError:
            fault = f"{text[field]!r} is not a number" if text[field] else "is empty"
            faults.append(line.fault(field, fault, "give a number of pixels"))
            continue
        if not math.isfinite(values[field]):
            fault = f"{text[field]!r} is not finite"
            faults.append(line.fault(field, fault, "give a number of pixels"))
    if faults:
        return Label(), faults
    for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
        if values[low] >= values[high]:
            kind = "empty" if values[low] == values[high] else "inverted"
            fault = f"the box is {kind} ({low} {values[low]:g}, {high} {values[high]:g})"
            faults.append(line.fault(high, fault, f"{high} must be larger than {low}"))
    box = values["x_min"], values["y_min"], values["x_max"], values["y_max"]
    return Label(box=box), faults


def _points(line: Line, text: dict[str, str]) -> tuple[Label, list[Fault]]:
    faults = []
    points: list[tuple[float, float] | None] = []
    for field, value in text.items():
        point = _point(value)
        if isinstance(point, str):
            remedy = 'give "[x, y]" in pixels, or nothing where the point is missing'
            faults.append(line.fault(field, f"{value!r} {point}", remedy))
        else:
            points.append(point)
    return Label(points=tuple(points)), faults


def _point(text: str) -> tuple[float, float] | str | None:
    """The point, what is wrong with it, or None where none is given."""
    if not text:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return "is not a point"
    if not isinstance(values, list) or len(values) != 2:
        return "is not a point"
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return "is not two numbers"
    try:
        x, y = map(float, values)
    except OverflowError:  # a whole number of hundreds of digits
        return "is not finite"
    return (x, y) if math.isfinite(x) and math.isfinite(y) else "is not finite"

"""The table of which experts serve which task."""

import json

from usfm.evaluation.experts import read_routing, routing_rows

LINES = [
    {"step": 1, "loss/a": 1.0, "routing/a": [0.5, 0.5]},
    {"step": 2, "loss/a": 1.0, "routing/a": [0.25, 0.75], "routing/<b>": [1.0, 0.0]},
    {"step": 3, "loss/a": 1.0},
]


def test_the_last_shares_of_each_task_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_routing(path) == {}
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert read_routing(path) == {"<b>": [1.0, 0.0], "a": [0.25, 0.75]}


def test_larger_shares_are_darker_and_names_are_escaped():
    rows = routing_rows({"<b>": [1.0, 0.0], "a": [0.25, 0.75]})
    assert rows[0].startswith("<tr><td>&lt;b&gt;</td>")
    shades = [row.split("var(--accent) ")[1:] for row in rows]
    percent = [[int(cell.split("%")[0]) for cell in row] for row in shades]
    assert percent == [[45, 0], [11, 34]]
    assert ">100</td>" in rows[0]

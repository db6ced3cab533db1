"""The official evaluator's libraries, row by row, beside ours: where $PEER_PY has them."""

import json
import os

import pytest

from tools.benchmarks import metrics as benchmark
from tools.benchmarks.worker import started
from usfm.data.folder import read_folder
from usfm.evaluation.evaluate import evaluate
from usfm.evaluation.submission import read_submission, write_submission

# Ours of each of the peer's names.
OTHERS = {
    "segmentation": {"HD95": "hd95", "NSD": "nsd"},
    "classification": {"sensitivity": "sensitivity", "specificity": "specificity", "ECE": "ece"},
    "regression": {"PCK": "pck"},
}


@pytest.fixture
def scored(phantoms, tmp_path):
    """What both say of one submission that lacks some answers: ours, official and all of theirs."""
    python = os.environ.get("PEER_PY", "")
    if why := benchmark.lacks(python):
        pytest.skip(f"PEER_PY names no Python with SimpleITK, medpy and scikit-learn: {why}")
    folder = read_folder(phantoms)
    answers = [pair for pair in benchmark.moved(folder) if pair[0].index != 3]
    write_submission(answers, folder, tmp_path)
    asked = [row for of_task in folder.rows.values() for row in of_task]
    ours = evaluate(
        read_submission(folder, tmp_path, asked),
        folder,
        folder.rows,
        trivial={},
        part_of=lambda row: "all",
        group_of=lambda row: row.content,
    )
    assert len(ours.report["missing"]) == len(folder.tasks)
    with started(python, str(benchmark.PEER), str(phantoms), str(tmp_path)) as peer:
        return ours, json.loads(peer.run("json")), json.loads(peer.run("others"))


def test_the_official_form_is_what_the_official_way_says(scored):
    ours, official, _ = scored
    assert ours.official.keys() == official.keys()
    for type_, tasks in official.items():
        assert ours.official[type_].keys() == tasks.keys()
        for task_id, entry in tasks.items():
            # Truths of boxes and points are kept as float32 shares of the image's size.
            precision = 1e-5 if type_ in ("detection", "regression") else 1e-9
            assert_close(ours.official[type_][task_id], entry, precision)


def assert_close(found, expected, precision):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, precision)
    else:
        assert found == pytest.approx(expected, rel=precision, abs=precision)


def test_the_other_metrics_are_what_their_libraries_say(scored):
    ours, _, everything = scored
    for type_, names in OTHERS.items():
        for task_id, entry in everything[type_].items():
            expected = {name: entry[theirs] for theirs, name in names.items()}
            found = {name: ours.report["tasks"][task_id][name] for name in expected}
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)

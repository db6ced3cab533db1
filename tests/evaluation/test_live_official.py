"""The official evaluator's libraries, row by row, beside ours: where $PEER_PY has them."""

import json
import os

import pytest

from tools.benchmarks import metrics as benchmark
from tools.benchmarks.worker import started
from usfm.data.folder import read_folder
from usfm.evaluation.submission import write_submission

# Ours of each of the peer's names.
OTHERS = {
    "segmentation": {"HD95": "hd95", "NSD": "nsd"},
    "classification": {"sensitivity": "sensitivity", "specificity": "specificity", "ECE": "ece"},
    "regression": {"PCK": "pck"},
}


@pytest.fixture
def scored(phantoms, tmp_path):
    """What both say of one submission that lacks some answers."""
    python = os.environ.get("PEER_PY", "")
    if why := benchmark.lacks(python):
        pytest.skip(f"PEER_PY names no Python with SimpleITK, medpy and scikit-learn: {why}")
    folder = read_folder(phantoms)
    answers = [pair for pair in benchmark.moved(folder) if pair[0].index != 3]
    write_submission(answers, folder, tmp_path)
    ours = benchmark.scored(folder, tmp_path)
    assert len(ours.report["missing"]) == len(folder.tasks)
    # Threads of a busy machine wait for each other.
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    command = (python, str(benchmark.PEER), str(phantoms), str(tmp_path))
    with started(*command, environment=environment) as peer:
        return ours, json.loads(peer.run("json"))


def test_a_submission_scores_what_the_libraries_say(scored):
    ours, theirs = scored
    assert ours.official.keys() == theirs.keys()
    for type_, tasks in theirs.items():
        assert ours.official[type_].keys() == tasks.keys()
        for task_id, entry in tasks.items():
            # Truths of boxes and points are kept as float32 shares of the image's size.
            precision = 1e-5 if type_ in ("detection", "regression") else 1e-9
            assert_close(ours.official[type_][task_id], entry, precision)
            for their_name, name in OTHERS.get(type_, {}).items():
                assert_close(ours.report["tasks"][task_id][name], entry[their_name], 1e-9)


def assert_close(found, expected, precision):
    if isinstance(found, dict):
        for name, value in found.items():
            assert_close(value, expected[name], precision)
    else:
        assert found == pytest.approx(expected, rel=precision, abs=precision)

"""That a model is compared with itself alone, and what that says."""

import numpy as np

from tools.trained_nulls import null_gains
from usfm.study.gains import HARM, NO_CALL, judge
from usfm.study.scores import Scores, Table
from usfm.tasks import Task

SEG = Task("seg", "segmentation", num_classes=2)


def scores(**levels):
    """Tables of models of these Dice, three runs each."""
    rng = np.random.default_rng(0)
    tables = {
        (model, "seg"): Table(
            "seg", model, (0, 1, 2), level + 0.05 * rng.standard_normal((3, 90)), np.arange(90)
        )
        for model, level in levels.items()
    }
    return Scores(tables, ())


def test_equal_models_are_not_called_and_unequal_ones_are():
    one, other = scores(alone=0.6, worse=0.6, only_here=0.6), scores(alone=0.6, worse=0.3)
    found = judge(list(null_gains([SEG], one, other)))
    assert [gain.verdict for gain in found] == [NO_CALL, HARM]

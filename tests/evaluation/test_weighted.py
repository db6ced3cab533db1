import itertools

import numpy as np
import pytest
import sklearn
from sklearn import metrics as sk

from usfm.evaluation import weighted


@pytest.fixture(autouse=True)
def _quick():
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        yield


def close(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


def draw(generator, classes):
    """Labels, probabilities (often tied), predictions and weights of a few rows."""
    n = generator.integers(2, 40)
    labels = generator.integers(classes, size=n)
    probs = generator.dirichlet(np.ones(classes), n) + 0.6 * np.eye(classes)[labels]
    if generator.random() < 0.5:
        probs = np.round(2 * probs) + 0.25
    probs /= probs.sum(axis=1, keepdims=True)
    weights = generator.integers(0, 4, n).astype(float)
    weights[0] = 1  # so that some row counts
    return labels, probs, probs.argmax(axis=1), weights


def test_1000_random_rankings_agree_with_sklearn():
    generator = np.random.default_rng(0)
    for _ in range(1000):
        labels, probs, predicted, weights = draw(generator, 2)
        true, sure = labels == 1, probs[:, 1]
        defined = len(set(labels[weights > 0])) == 2
        area = sk.roc_auc_score(true, sure, sample_weight=weights) if defined else np.nan
        assert weighted.auc(sure, true, weights[None])[0] == close(area)
        right = predicted == labels
        held = weights[right].sum() / weights.sum()
        # Theirs divides by the right rows, ours by all that are to be found.
        ap = sk.average_precision_score(right, sure, sample_weight=weights) if held else 0
        assert weighted.average_precision(sure, right, weights[None])[0] == close(ap * held)


def test_1000_random_tables_agree_with_sklearn():
    generator = np.random.default_rng(1)
    for case in range(1000):
        classes = 2 + case % 4
        labels, _, predicted, weights = draw(generator, classes)
        counts = weighted.confusion(labels, predicted, classes, weights[None])
        true, said, by = (array[weights > 0] for array in (labels, predicted, weights))
        _, recall, f1, support = map(
            np.asarray,
            sk.precision_recall_fscore_support(
                true, said, labels=range(classes), sample_weight=by, zero_division=0
            ),
        )
        occurs = np.isin(range(classes), [true, said])
        assert weighted.f1(counts)[0][occurs] == close(f1[occurs])
        assert np.isnan(weighted.f1(counts)[0][~occurs]).all()
        assert weighted.f1_macro(counts)[0] == close(f1[occurs].mean())
        assert weighted.f1_weighted(counts)[0] == close(f1 @ support / by.sum())
        assert weighted.sensitivity(counts)[0] == close(np.where(support > 0, recall, np.nan))
        kept = [by[(true != c) & (said != c)].sum() for c in range(classes)]
        others = by.sum() - support
        expected = np.divide(kept, others, out=np.full(classes, np.nan), where=others > 0)
        assert weighted.specificity(counts)[0] == close(expected)
        single = len(set(true)) == 1
        mcc = np.nan if single else sk.matthews_corrcoef(true, said, sample_weight=by)
        assert weighted.mcc(counts)[0] == close(mcc)


def test_calibration_error_is_that_of_bins_of_confidence():
    generator = np.random.default_rng(3)
    confidence, right = generator.uniform(0.2, 1, 400), generator.random(400) < 0.6
    confidence[:3] = 1.0, 1 / 3, 2 / 3  # edges belong to the lower bin
    edges = np.arange(16) / 15
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        held = (confidence > low) & (confidence <= high)
        expected += abs(right[held].sum() - confidence[held].sum()) / 400
    found = weighted.calibration_error(confidence, right, np.ones((1, 400)))[0]
    assert found == pytest.approx(expected, abs=1e-9)


def test_many_weightings_at_once_are_those_one_by_one():
    generator = np.random.default_rng(4)
    labels, probs, predicted, _ = draw(generator, 3)
    weights = generator.integers(0, 3, (7, len(labels))).astype(float)
    weights[3] = 0  # of no row at all
    functions = {
        "auc": lambda w: weighted.auc(probs[:, 0], labels == 0, w),
        "ap": lambda w: weighted.average_precision(probs[:, 0], labels == predicted, w),
        "ece": lambda w: weighted.calibration_error(probs.max(1), labels == predicted, w),
        "mean": lambda w: weighted.mean(probs[:, 0], w),
        "mcc": lambda w: weighted.mcc(weighted.confusion(labels, predicted, 3, w)),
    }
    for function in functions.values():
        together = function(weights)
        assert together == close(np.concatenate([function(row[None]) for row in weights]))
        assert np.isnan(together[3])

"""Metrics of sets of rows, of many weightings of the rows at once.

A row of weight 2 counts as two rows. So equal weights give a metric, and the counts with which
bootstrap resamples hold the rows give it of every resample (Efron & Tibshirani 1993). Weights are
float64 [B, N], of B weightings of N rows; a metric is float64 [B], NaN where it has no value.
"""

import numpy as np

# Of expected calibration error: equal widths of the highest probability (Guo et al. 2017, ICML).
BINS = 15


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of float64 [N] values; NaN where all weights are 0."""
    return _ratio(weights @ values, weights.sum(axis=1))


def auc(prob: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve; a tie of a positive and a negative row counts half.

    Args:
        prob: float64 [N], of being positive.
        positive: bool [N].
        weights: [B, N].
    """
    order, ends = _levels(prob)
    of_rows = weights[:, order]
    of_positive = of_rows * positive[order]
    below = _before(of_rows - of_positive)
    beaten = (below[:, ends.begin] + below[:, ends.end]) / 2
    total = of_positive.sum(axis=1)
    pairs = total * (of_rows.sum(axis=1) - total)
    return _ratio((of_positive * beaten).sum(axis=1), pairs)


def average_precision(score: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve, a step at each right row, not interpolated.

    Every row holds one thing to be found, so recall counts the right rows among all rows.

    Args:
        score: float64 [N], by which rows are ranked; rows of equal score enter together.
        right: bool [N], what was looked for was found.
        weights: [B, N].
    """
    order, ends = _levels(-score)
    of_rows = weights[:, order]
    of_right = of_rows * right[order]
    precision = _ratio(_before(of_right)[:, ends.end], _before(of_rows)[:, ends.end])
    # Where no row has entered yet none is right, whatever the precision.
    found = np.where(of_right > 0, of_right * precision, 0).sum(axis=1)
    return _ratio(found, of_rows.sum(axis=1))


def confusion(
    labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray
) -> np.ndarray:
    """Rows by true and predicted class: float64 [B, C, C], from int [N] classes."""
    cells = np.eye(classes**2)[labels * classes + predicted]
    return (weights @ cells).reshape(-1, classes, classes)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each class, [B, C]; NaN where a class is neither true nor predicted."""
    return _ratio(2 * _hits(counts), counts.sum(axis=2) + counts.sum(axis=1))


def f1_macro(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that are true or predicted, as scikit-learn has it."""
    of_classes = f1(counts)
    occurs = ~np.isnan(of_classes)
    return _ratio(np.where(occurs, of_classes, 0).sum(axis=1), occurs.sum(axis=1))


def f1_weighted(counts: np.ndarray) -> np.ndarray:
    """Mean F1 weighted by how often each class is true."""
    true = counts.sum(axis=2)
    return _ratio((np.nan_to_num(f1(counts)) * true).sum(axis=1), true.sum(axis=1))


def mcc(counts: np.ndarray) -> np.ndarray:
    """Matthews correlation of all classes (Gorodkin 2004); 0 where one class is always predicted.

    NaN where only one class is true.
    """
    true, predicted, total = counts.sum(axis=2), counts.sum(axis=1), counts.sum(axis=(1, 2))
    square = total**2
    of_true, of_predicted = (square - (n**2).sum(axis=1) for n in (true, predicted))
    covariance = total * _hits(counts).sum(axis=1) - (true * predicted).sum(axis=1)
    spread = np.sqrt(of_true * of_predicted)
    return np.where(of_true == 0, np.nan, np.where(spread == 0, 0, _ratio(covariance, spread)))


def sensitivity(counts: np.ndarray) -> np.ndarray:
    """Share of the rows of each class that are found, [B, C]; NaN where there are none."""
    return _ratio(_hits(counts), counts.sum(axis=2))


def specificity(counts: np.ndarray) -> np.ndarray:
    """Share of the rows of other classes that are not taken for it, [B, C]; NaN without any."""
    others = counts.sum(axis=(1, 2))[:, None] - counts.sum(axis=2)
    wrong = counts.sum(axis=1) - _hits(counts)
    return _ratio(others - wrong, others)


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error: by how much confidence and accuracy differ, mean over BINS.

    Args:
        confidence: float64 [N], the highest probability of each row, in (0, 1].
        right: bool [N].
        weights: [B, N].
    """
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = weights @ (np.eye(BINS)[place] * (right - confidence)[:, None])
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


class _Ends:
    """Of each row of a sorted column, where the rows equal to it begin and end."""

    def __init__(self, column: np.ndarray):
        self.begin = np.searchsorted(column, column, side="left")
        self.end = np.searchsorted(column, column, side="right")


def _levels(column: np.ndarray) -> tuple[np.ndarray, _Ends]:
    order = np.argsort(column, kind="stable")
    return order, _Ends(column[order])


def _before(weights: np.ndarray) -> np.ndarray:
    """Sums of the first 0 to N columns: [B, N + 1]."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _hits(counts: np.ndarray) -> np.ndarray:
    return np.diagonal(counts, axis1=1, axis2=2)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """The quotient, NaN where `under` is 0."""
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under != 0)

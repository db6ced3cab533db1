"""Break-evens of gains whose line is known."""

import dataclasses
import math

import numpy as np
import pytest

from usfm.study.break_even import break_evens
from usfm.study.estimate import Estimate
from usfm.study.gains import NO_CALL, Gain


def made(line, rng, *, tasks=9, fractions=(0.1, 1.0), noise=0.03):
    """Gains that lie about a line of log10(training rows)."""
    found = []
    for fraction in fractions:
        for i in range(tasks):
            rows = int(fraction * 300 * 1.5**i)
            value = line(math.log10(rows)) + noise * rng.standard_normal()
            shift = {("rows", f"t{i}"): noise * rng.standard_normal(50) / 50}
            shift["rows", f"t{i}"] -= shift["rows", f"t{i}"].mean()
            estimate = Estimate(value, shift)
            found.append(
                Gain(
                    *("arm", fraction, f"t{i}", "segmentation", "g", rows, 50, 3, "dsc"),
                    *(0.5, 0.5 * (1 + value), value, math.nan, math.nan, 1.0, 1.0, NO_CALL),
                    estimate,
                )
            )
    return found


def test_the_break_even_is_found():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        (found,) = break_evens(made(lambda x: 0.2 * (x - 2.7), rng), 300, 0)
        assert found.rows is not None
        assert found.rows == pytest.approx(10**2.7, rel=0.4)
        assert found.low is not None
        assert found.high is not None
        covered.append(found.low < 10**2.7 < found.high)
    assert np.mean(covered) >= 0.88
    assert found.slope_low < 0.2 < found.slope_high
    assert found.tasks == 9
    assert found.reason == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (lambda x: 0.1 * x + 0.5, "a gain within 10 times the seen numbers of rows"),
        (lambda x: 0.1 * x - 1, "a loss within 10 times the seen numbers of rows"),
        (lambda x: -0.1 * x + 1, "a gain within 10 times the seen numbers of rows"),
        (lambda x: 0.0, "whether more rows help or harm is not known"),
    ],
)
def test_a_line_that_tells_none_says_why(line, reason):
    (found,) = break_evens(made(line, np.random.default_rng(1)), 300, 0)
    assert (found.rows, found.low, found.high, found.reason) == (None, None, None, reason)


def test_too_few_gains_have_no_line():
    rng, line = np.random.default_rng(0), lambda x: 0.2 * (x - 2.7)
    (found,) = break_evens(made(line, rng, tasks=1), 100, 0)
    assert found.reason == "2 gains of 1 tasks are too few for a line"
    assert math.isnan(found.slope)
    alike = [
        dataclasses.replace(gain, training_rows=100 + i) for i, gain in enumerate(made(line, rng))
    ]
    (found,) = break_evens(alike, 100, 0)
    assert found.reason == "all gains are at about the same training rows"


def test_the_resamples_are_fixed_by_the_seed():
    gains = made(lambda x: 0.2 * (x - 2.7), np.random.default_rng(0))
    assert break_evens(gains, 100, 0) == break_evens(gains, 100, 0)
    assert break_evens(gains, 100, 0) != break_evens(gains, 100, 1)

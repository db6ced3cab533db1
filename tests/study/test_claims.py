"""The paper's claims, on gains that speak for them, against them, or not at all."""

import math

import numpy as np
import pytest

from usfm.study.claims import CONTRADICTED, SUPPORTED, UNDECIDED, claims
from usfm.study.estimate import Estimate
from usfm.study.gains import NO_CALL, Gain

SCALE, RICH, STEADY, TYPES = range(4)
KINDS = ("segmentation", "classification", "detection")
GROUPS = {"breast": 3000, "heart": 400, "lung": 100, "obstetric": 12000}

UNEVEN = {"breast": -0.5, "heart": 0.2, "lung": 0.0, "obstetric": 0.5}


def made(value, *, error=0.01, seeds=3, arms=("clinically_grouped", "all_task")):
    """Gains of a task of each type in four groups at two fractions, from their true values."""
    rng = np.random.default_rng(0)
    found = []
    for arm in arms:
        for fraction in (0.1, 1.0):
            for group, rows in GROUPS.items():
                for kind in KINDS:
                    task = f"{group} {kind}"
                    gain = value(arm, fraction, group, kind) + error * rng.standard_normal()
                    shift = rng.standard_normal(30)
                    shift *= error / np.sqrt((shift**2).sum())
                    own = {("rows", f"{arm} {fraction} {task}"): shift - shift.mean()}
                    training, metric = int(fraction * rows), "dsc"
                    found.append(
                        Gain(
                            *(arm, fraction, task, kind, group, training, 50, seeds, metric),
                            *(0.5, 0.5, gain, math.nan, math.nan, 1.0, 1.0, NO_CALL),
                            Estimate(gain, own),
                        )
                    )
    return found


def constant(arm, fraction, group, kind):
    return 0.1


def with_scale(arm, fraction, group, kind):
    return 0.3 if fraction == 1 else -0.1


def by_size(arm, fraction, group, kind):
    rich = fraction * GROUPS[group] > 350
    return 0.3 if rich else -0.3


def against_size(arm, fraction, group, kind):
    return -by_size(arm, fraction, group, kind)


def steady_if(steady):
    return lambda arm, fraction, group, kind: (
        0.1
        if arm == steady
        else {"breast": -0.5, "heart": 0.2, "lung": 0.0, "obstetric": 0.5}[group]
    )


def mostly(strong):
    return lambda arm, fraction, group, kind: (
        (0.5 if kind == strong else 0.1) * (-1 if group == "breast" else 1)
    )


@pytest.mark.parametrize(
    ("claim", "value", "verdict"),
    [
        (SCALE, with_scale, SUPPORTED),
        (SCALE, constant, CONTRADICTED),
        (RICH, by_size, SUPPORTED),
        (RICH, against_size, CONTRADICTED),
        (RICH, constant, CONTRADICTED),
        (STEADY, steady_if("all_task"), SUPPORTED),
        (STEADY, steady_if("clinically_grouped"), CONTRADICTED),
        (TYPES, mostly("segmentation"), SUPPORTED),
        (TYPES, mostly("detection"), CONTRADICTED),
        (TYPES, constant, UNDECIDED),
    ],
)
def test_a_claim_is_held_against_the_gains(claim, value, verdict):
    found = claims(made(value))[claim]
    assert found.verdict == verdict
    assert "[" in found.evidence


@pytest.mark.parametrize("claim", range(4))
def test_noise_decides_nothing(claim):
    assert claims(made(lambda *of: 0.0, error=0.5))[claim].verdict == UNDECIDED


@pytest.mark.parametrize("gains", [[], made(with_scale, seeds=2), made(with_scale, arms=["own"])])
def test_without_gains_to_go_by_a_claim_is_undecided(gains):
    assert [claim.verdict for claim in claims(gains)] == [UNDECIDED] * 4


def test_the_first_method_speaks():
    first = made(with_scale, arms=("clinically_grouped/sum", "all_task/sum"))
    second = made(constant, arms=("clinically_grouped/pcgrad", "all_task/pcgrad"))
    assert claims(first + second) == claims(first)
    assert claims(second + first) == claims(second)

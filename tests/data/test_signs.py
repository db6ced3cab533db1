"""The signs: small phantom tasks, and the truth of which of them ask the same."""

import json

import numpy as np
import pytest

from usfm.data.folder import read_folder
from usfm.data.phantoms import scene, write_signs
from usfm.data.phantoms.signs import GROUPS, MEMBERS, SIDE, SIGNS, deal


def test_a_folder_is_read_without_fault_and_has_the_truth_beside_it(tmp_path):
    assert write_signs(tmp_path / "signs", rows=4, seed=3) == GROUPS * MEMBERS + 1
    folder = read_folder(tmp_path / "signs")
    dealt = deal(seed=3)
    asked = [(task.id, task.type, task.num_points) for task in folder.tasks]
    assert asked == [(id, "regression", 1) for id in dealt]
    assert not folder.skipped
    assert len({row.content for rows in folder.rows.values() for row in rows}) == 4 * len(dealt)
    truth = json.loads((tmp_path / "signs" / "planted.json").read_text())
    (rival,) = (id for id, one in dealt.items() if one.reversed)
    assert truth["groups"] == {id: GROUPS if id == rival else d.sign for id, d in dealt.items()}
    contradicted = [id for id, one in dealt.items() if one.sign == dealt[rival].sign]
    assert truth["conflicts"] == [[id, rival] for id in contradicted if id != rival]


def test_groups_are_dealt_by_the_seed():
    deals = [deal(seed=seed) for seed in range(6)]
    for dealt in deals:
        signs = [one.sign for one in dealt.values() if not one.reversed]
        assert sorted(signs) == sorted([*range(GROUPS)] * MEMBERS)
    assert len({tuple(one.sign for one in dealt.values()) for dealt in deals}) == len(deals)
    assert len({tuple(one.reversed for one in dealt.values()) for dealt in deals}) > 1


def test_where_nothing_is_related_every_task_has_a_sign_of_its_own():
    dealt = deal(related=False, seed=1)
    assert sorted(one.sign for one in dealt.values()) == list(range(len(SIGNS)))
    assert not any(one.reversed for one in dealt.values())


@pytest.mark.parametrize("related", [True, False])
def test_the_answer_is_where_the_sign_is(related):
    """Both halves are as bright, or as dark, as those of its sign, on the mean over images."""
    for one in deal(related=related, seed=0).values():
        apart = []
        for number in range(24):
            made, rng = one.draw(0, number)
            image = scene.image(made, rng).astype(float)
            ((x, y),) = scene.landmarks(made)
            y = SIDE - y if one.reversed else y
            column, row = slice(int(x) - 1, int(x) + 2), int(y)
            halves = image[row - 3 : row - 1, column], image[row + 1 : row + 3, column]
            apart.append([half.mean() - np.median(image) for half in halves])
        sign = SIGNS[one.sign]
        assert (np.sign(np.mean(apart, 0)) == np.sign([sign.upper, sign.lower])).all()
        assert (np.abs(np.mean(apart, 0)) > 15).all()

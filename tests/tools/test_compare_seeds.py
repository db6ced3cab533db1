import json

from tools.compare_seeds import main
from usfm.evaluation.metrics import PRIMARY
from usfm.evaluation.table import number


def lines(capsys):
    """The cells of each line of the table, by (task, metric)."""
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    return {(cells[0], cells[1].removesuffix(" px")): cells for cells in rows if len(cells) == 6}


def test_seeds_stand_beside_the_trivial_predictor(trained, capsys):
    main([trained, trained], [])
    table = lines(capsys)
    evaluation = json.loads((trained / "evaluation.json").read_text())
    for task_id, scored in evaluation["tasks"].items():
        (metric,) = PRIMARY.values() & scored.keys()
        value, floor = (
            number(metric, of[metric]) for of in (scored, evaluation["trivial"][task_id])
        )
        cells = table[task_id, metric]
        assert cells[2:5] == [str(scored["n"]), f"{value} ({value} to {value})", floor]


def test_a_run_beside_itself_differs_by_nothing(trained, capsys):
    main([trained], [trained])
    table = lines(capsys)
    del table["task", "metric"], table["---", "---"]
    assert table
    assert {cells[5] for cells in table.values()} == {"+0 [+0, +0]"}

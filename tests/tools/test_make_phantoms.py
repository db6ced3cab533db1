import csv
import json

import pytest

from tools import make_phantoms


def test_a_folder_of_all_tasks_is_written_once(tmp_path, capsys):
    root = tmp_path / "phantoms"
    make_phantoms.main([str(root), "--rows=1", "--seed=3"])
    tables = sorted((root / "csv_files").glob("*.csv"))
    assert len(tables) >= 8
    for table in tables:
        with table.open() as file:
            assert len(list(csv.DictReader(file))) == 1
    assert json.loads((root / "phantoms.json").read_text())["seed"] == 3
    written = tables[0].stat().st_mtime_ns
    make_phantoms.main([str(root), "--rows=1", "--seed=3"])
    assert tables[0].stat().st_mtime_ns == written
    assert capsys.readouterr().out == f"{len(tables)} phantom tasks of 1 images: {root}\n" * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rows=0"], "^make_phantoms: rows must be 1 or more"),
        (["--kind=fm_uia", "--rows=35"], "^make_phantoms: rows must be 36 or more, not 35$"),
        (["--kind=fm_uia", "--relatedness=1.5"], "^make_phantoms: relatedness must be from 0 to 1"),
        (["--kind=fm_uia", "--difficulty=nan"], "^make_phantoms: difficulty must be from 0 to 1"),
        (["--kind=signs", "--relatedness=.5"], "^make_phantoms: relatedness must be 0 or 1"),
        (["--kind=signs", "--difficulty=0"], "^make_phantoms: --difficulty goes with .*fm_uia$"),
        (["--relatedness=0"], "^make_phantoms: --relatedness goes with .*fm_uia and --kind=signs$"),
        ([], "^make_phantoms: .* was not made by write_folder: remove it or give another folder"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(arguments, told, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit, match=told):
        make_phantoms.main([str(tmp_path), *arguments])


def test_the_knobs_reach_the_planted_tasks(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(make_phantoms, "write_planted", lambda root, **knobs: given.update(knobs))
    make_phantoms.main(["ROOT", "--kind=fm_uia", "--rows=40", "--relatedness=0"])
    assert given == {"rows": 40, "seed": 0, "relatedness": 0.0}
    assert capsys.readouterr().out == "27 phantom tasks of up to 40 images: ROOT\n"

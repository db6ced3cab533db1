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
        ([], "^make_phantoms: .* was not made by write_folder: remove it or give another folder"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(arguments, told, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit, match=told):
        make_phantoms.main([str(tmp_path), *arguments])

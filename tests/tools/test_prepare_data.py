import csv
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from usfm.data.phantoms import write_folder

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    write_folder(tmp_path / "phantoms", tasks=["lung_2cls", "fetal_femur"], rows=6)
    return tmp_path / "phantoms"


def run(root: pathlib.Path, place: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "tools/prepare_data.py",
        "--config=configs/fm_uia.py:debug",
        f"--workdir={place / 'w'}",
        f"--config.data.root={root}",
        f"--config.data.cache_dir={place / 'cache'}",
        "--config.data.image_size=32",
        *flags,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_splits_and_store_are_there_afterwards_and_nothing_was_trained(root, tmp_path):
    result = run(root, tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "fetal_femur",
        "lung_2cls",
        "splits:",
    ]
    assert os.listdir(tmp_path / "w") == ["splits.csv"]
    with (tmp_path / "w" / "splits.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    records = list((tmp_path / "cache").rglob("*.array_record*"))
    assert len(records) == 2


def test_faults_end_it_before_anything_is_built(root, tmp_path):
    (root / "Classification/lung_2cls/0003.png").write_bytes(b"torn")
    result = run(root, tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"usfm: 1 fault in {root}\n")
    assert (tmp_path / "w" / "bad_rows.csv").exists()
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def test_options_of_beam_without_beam_are_refused(root, tmp_path):
    result = run(root, tmp_path, "--beam_options=runner=FlinkRunner")
    assert result.returncode == 1
    assert result.stderr == "usfm: --beam_options says how, but not that: give --beam too\n"


def test_without_apache_beam_it_is_asked_for(root, tmp_path):
    if importlib.util.find_spec("apache_beam"):
        pytest.skip("Apache Beam (the extra beam) is installed")
    result = run(root, tmp_path, "--beam")
    assert result.returncode == 1
    assert result.stderr == "usfm: --beam needs Apache Beam: pip install -e '.[beam]'\n"


def test_apache_beam_builds_the_same_store(root, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam (the extra beam) is not installed")
    # Without the second option, Apache Beam would look for a runner of its own in the network.
    flags = ("--beam", "--beam_options=runner=DirectRunner,allow_unsafe_triggers")
    (tmp_path / "beam").mkdir()
    results = run(root, tmp_path), run(root, tmp_path / "beam", *flags)
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    stores = [
        {
            str(path.relative_to(cache)): path.read_bytes()
            for path in cache.rglob("*")
            if path.is_file() and not path.match("files-*.json")
        }
        for cache in (tmp_path / "cache", tmp_path / "beam" / "cache")
    ]
    assert stores[0] == stores[1] != {}

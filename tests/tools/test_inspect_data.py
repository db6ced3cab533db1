import os
import pathlib
import subprocess
import sys

import pytest

from usfm.data.phantoms import write_folder

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    tasks = ["lung_2cls", "fetal_femur", "cardiac_multi", "uterine_fibroid_det"]
    write_folder(tmp_path / "phantoms", tasks=tasks, rows=4)
    return tmp_path / "phantoms"


def run(root: pathlib.Path, place: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "tools/inspect_data.py",
        "--config=configs/fm_uia.py",
        f"--workdir={place / 'w'}",
        f"--config.data.root={root}",
        f"--config.data.cache_dir={place / 'cache'}",
        *flags,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_folder_becomes_a_page(root, tmp_path):
    (root / "Classification/lung_2cls/0003.png").write_bytes(b"torn")
    result = run(root, tmp_path, "--config.data.on_bad_row=skip")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"page: {tmp_path / 'w/data.html'}\n"
    assert sorted(os.listdir(tmp_path / "w")) == ["bad_rows.csv", "data.html"]
    text = (tmp_path / "w/data.html").read_text()
    assert text.count("<img ") == 4 * 4 - 1
    assert f"<p>{root}</p>" in text
    assert "<summary>1 fault</summary>" in text
    assert not list((tmp_path / "cache").rglob("*.array_record*"))  # no store is built

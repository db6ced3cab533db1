import os

import pytest

from usfm.data import parallel
from usfm.data.builder import open_store
from usfm.data.folder import read_folder


def pid(_):
    return os.getpid()


@pytest.fixture
def processes(monkeypatch):
    """Any work is worth processes."""
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)


def test_little_work_starts_no_processes():
    with parallel.all_cores(parallel.WORTH_PROCESSES - 1) as pool:
        assert set(pool.map(pid, range(10))) == {os.getpid()}


def test_much_work_is_done_elsewhere(processes):
    with parallel.all_cores(10) as pool:
        assert os.getpid() not in set(pool.map(pid, range(10)))


def test_processes_find_and_store_the_same(phantoms, tmp_path, processes, monkeypatch):
    found = read_folder(phantoms)
    store = open_store(found, (16, 16), 1, tmp_path / "processes")
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 10**9)
    assert read_folder(phantoms) == found
    again = open_store(found, (16, 16), 1, tmp_path / "threads")
    for task in store.tasks:
        files = zip(store.shards[task.id], again.shards[task.id], strict=True)
        for (file, _), (same, _) in files:
            with open(file, "rb") as one, open(same, "rb") as other:
                assert one.read() == other.read()

"""How processes find each other, and what they say when they do not."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from usfm import processes
from usfm.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
}


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with; no cluster is around."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **settings: calls.append(args))
    for name in (*SLURM, *OPEN_MPI, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("cluster", [SLURM, OPEN_MPI])
def test_a_cluster_is_joined_without_flags_unless_one_process_is_asked_for(
    cluster, joined, monkeypatch
):
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    processes.start(processes=1)
    assert not joined
    processes.start()
    assert joined == [(None, None, None)]


def test_a_process_alone_joins_nothing(joined, monkeypatch):
    processes.start()
    for name, value in (SLURM | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    processes.start()
    assert not joined
    assert processes.gather("mine") == ["mine"]
    assert processes.in_turn(lambda: 3) == 3
    assert processes.share([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("here:1234", None, 0), "--processes missing: give --coordinator=HOST:PORT"),
        ((None, 2, None), "--coordinator, --process missing: give"),
        (("here", 2, 0), "--coordinator=here: give HOST:PORT, such as"),
        (("here:1234", 2, 2), "--process=2 of --processes=2: processes are numbered from 0 to N"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, told, joined):
    with pytest.raises(UserError) as caught:
        processes.start(*flags)
    assert str(caught.value).startswith(told)
    assert not joined


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_coordinator_that_is_not_there_is_told_in_one_line():
    process = start(
        "from usfm import processes\n"
        f"processes.start('127.0.0.1:{free_port()}', 2, 1, timeout=1)"
    )  # fmt: skip
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("usfm: not all processes of the run came together within 1 s: start all")


def test_what_one_process_cannot_do_ends_all_of_them():
    code = """
from usfm import processes
from usfm.errors import UserError
processes.start("127.0.0.1:{port}", 2, {number})
print(processes.gather("x" * {number}), processes.agreed({number}), processes.share("abc"))
def work():
    if {number} == 1:
        raise UserError("here is no disk")
try:
    processes.in_turn(work)
except UserError as error:
    print(error)
"""
    port = free_port()
    both = [start(code.format(port=port, number=number)) for number in (1, 0)]
    second, first = (
        [line for line in process.communicate(timeout=120)[0].splitlines() if "Gloo" not in line]
        for process in both
    )
    assert [process.returncode for process in both] == [0, 0]
    assert first == ["['', 'x'] 0 ac", "process 1 of 2 could not go on, see there"]
    assert second == ["['', 'x'] 0 b", "here is no disk"]

"""Several processes as one run: how they find each other, take turns and put results together.

Each process drives the devices it sees, and reads the slots that lie on them. Process 0 writes the
files of the workdir, which all must see, and speaks; the others are heard only when they fail.
"""

import contextlib
import itertools
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import clusters  # whether there is one has no public name
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from usfm.errors import UserError

Value = TypeVar("Value")

CONNECT_SECONDS = 300
# Another process may be building the store.
WAIT_SECONDS = 24 * 3600
# A process that fails alone waits so long for the others, then all are ended.
SHUTDOWN_SECONDS = 30
_waits = itertools.count()


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = CONNECT_SECONDS,
) -> None:
    """Joins the other processes of the run; call it before JAX computes anything.

    Without arguments, JAX's own cluster detection decides (TPU pods, Slurm, Open MPI, GKE); where
    it finds none, or one of a single process, this process is all there is.

    Args:
        coordinator: HOST:PORT on which process 0 listens for the others.
        processes: how many there are; 1 = this one alone, whatever the cluster.
        process: the number of this one, from 0.
        timeout: seconds to wait for the others.

    Raises:
        UserError: some of the three are missing or wrong, or the port cannot be used. Where the
            others do not come, the process ends with such a line.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if processes == 1 and coordinator is None and process in (None, 0):
        return
    if missing := [flag for flag, value in given.items() if value is None]:
        if len(missing) < len(given):
            raise UserError(
                f"{', '.join(missing)} missing: give --coordinator=HOST:PORT --processes=N "
                "--process=I together, or none of them where the cluster is TPU, Slurm or Open MPI"
            )
        if _size_of_cluster() < 2:
            return
    else:
        host, colon, port = str(coordinator).rpartition(":")
        if not (host and colon and port.isdigit()):
            raise UserError(f"--coordinator={coordinator}: give HOST:PORT, such as 10.0.0.1:1234")
        if not 0 <= int(process or 0) < int(processes or 0):
            raise UserError(
                f"--process={process} of --processes={processes}: processes are numbered from 0 to "
                "N - 1"
            )
    # JAX would end the process with a core dump instead of an error.
    impatience = threading.Timer(timeout, _give_up, [timeout])
    impatience.daemon = True
    impatience.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=2 * timeout,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be joined: {str(error).splitlines()[0]}") from error
    finally:
        impatience.cancel()


def _give_up(seconds: float) -> None:
    print(
        f"usfm: not all processes of the run came together within {seconds:g} s: start all of "
        "them, with one --coordinator, whose host and port all can reach",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _size_of_cluster() -> int:
    """The number of processes that jax.distributed.initialize would find; 1 without a cluster."""
    for cluster in clusters.ClusterEnv._cluster_types:
        with warnings.catch_warnings(action="ignore"):  # in a pod, that kubernetes is missing
            found = not cluster.opt_in_only_method and cluster.is_env_present()
        if found:
            return cluster.get_process_count()
    return 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def only_first_speaks() -> Iterator[None]:
    """Silences Python's output in all processes but the first; errors raised inside are heard."""
    if not jax.distributed.is_initialized() or is_first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def share(items: Sequence[Value]) -> Sequence[Value]:
    """This process's share of some work: about as much as the others have, each item once."""
    return items[jax.process_index() :: jax.process_count()]


def gather(value: Value) -> list[Value]:
    """What each process has, in the order of the processes; all must call it.

    The value is any that can be pickled, of any size. It is waited for as long as it takes.
    """
    if jax.process_count() == 1:
        return [value]
    wait()
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size], np.int32)).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def agreed(value: Value) -> Value:
    """What process 0 has; all must call it."""
    return gather(value)[0]


def unlike_first(value: Any) -> str:
    """Which processes have another value than the first, as '1, 3 of 4'; "" where none has."""
    values = gather(value)
    others = [str(number) for number, of in enumerate(values) if of != values[0]]
    return f"{', '.join(others)} of {len(values)}" if others else ""


def wait() -> None:
    """Returns when all processes have come here."""
    if not jax.distributed.is_initialized():
        return
    barrier = multihost.get_barrier_sync_fn()
    barrier(key=f"usfm_{next(_waits)}", timeout_ms=WAIT_SECONDS * 1000)


def in_turn(work: Callable[[], Value]) -> Value:
    """Does some work in process 0, then in the others, which find done what can be shared.

    Raises:
        UserError: it failed here, or in another process, which says why.
    """
    if jax.process_count() == 1:
        return work()
    results, failed = [], None
    for now in (is_first(), not is_first()):
        if now:
            try:
                results.append(work())
            except Exception as error:
                failed = error
        failures = gather(failed is not None)
        if failed is not None:
            raise failed
        if any(failures):
            raise UserError(
                f"process {failures.index(True)} of {len(failures)} could not go on, see there"
            )
    return results[0]

"""A process that makes a step for every line it is sent, so that several can take turns."""

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Worker:
    """Such a process, and the line in which it said what it is."""

    about: str
    process: subprocess.Popen[str]

    def run(self, line: str = "") -> str:
        """One step, of the kind that the line names; what is said of it."""
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        if not (said := self.process.stdout.readline()):
            raise SystemExit("benchmark: a process ended before its step; see above")
        return said.strip()


@contextlib.contextmanager
def started(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """Runs a command as a worker, in this process's environment if no other is given."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        about = process.stdout.readline().strip()
        if not about:
            raise SystemExit("benchmark: a process ended before its first step; see above")
        yield Worker(about, process)
        process.communicate()  # closes its input, at which it ends


def lacks(python: str, packages: str) -> str:
    """Why a Python cannot import some packages ("a, b"); "" where it can."""
    tried = subprocess.run(
        [python, "-c", f"import {packages}"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip().rpartition("\n")[2]


def peer_python(packages: str) -> str:
    """The Python that has a peer: $PEER_PY."""
    python = os.environ.get("PEER_PY")
    if not python:
        raise SystemExit(f"benchmark: --peer needs PEER_PY, a Python with {packages}")
    return python

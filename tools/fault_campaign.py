"""Disturbs small runs in every way we know, and compares how they end with one nobody disturbed.

python tools/fault_campaign.py --out=DIR [--runs=50] [--seed=0] [--jobs=2]

Each run meets one fault, which must be seen to have struck; then the same command is run to its
end. Its final parameters, its whole final state and the losses of all its steps must be those of
an undisturbed run, to the bit. Prints a table; DIR/runs.jsonl has a line a run. File systems are
mounted for full and read-only disks, which takes the rights to do so; cc makes the clock's.
Ends non-zero where a fault did not strike or a run did not end as it should.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import pathlib
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"  # it only reads checkpoints itself

from absl import logging

from tools.campaign.faults import FAULTS, Fault, disk
from tools.campaign.runs import Runs, clean, logged, outcome, saved


def disturb(
    runs: Runs, number: int, fault: Fault, expected: Mapping[int, Any], seed: int
) -> dict[str, Any]:
    """One run: the fault, the same command again, and how it ended."""
    workdir, rng = runs.out / f"run_{number:03d}", random.Random(f"{seed}/{number}")
    began, again = time.monotonic(), None
    found: dict[str, Any] = {"run": number, "fault": fault.name, "struck": False, "same": False}
    try:
        with disk(fault, workdir):
            found["bore"] = fault.strike(runs, workdir, rng)
            found["struck"] = True
            again = logged(workdir) - (saved(workdir) or [0])[-1]
            runs.finish(workdir, processes=fault.processes)
            ended = outcome(workdir)
            names = ("parameters", "state", "losses")
            wanted = expected[fault.processes]
            differ = [n for n, a, b in zip(names, ended, wanted, strict=True) if a != b]
            found["same"] = "parameters" not in differ
            if differ:
                found["differ"] = differ
        clean(workdir)
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {error}"[:400]
    return found | {"again": again, "seconds": round(time.monotonic() - began, 1)}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a fault, in Markdown."""
    lines = [
        "| fault | runs | struck | steps made again: mean, most | how the runs bore it | "
        "same parameters | same state and losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        of_fault = [run for run in found if run["fault"] == fault.name]
        if not of_fault:
            continue
        again = [run["again"] for run in of_fault if run["again"] is not None] or [0]
        bore = collections.Counter(run.get("bore", run.get("failed", "")) for run in of_fault)
        words = "; ".join(f"{text} ({count})" for text, count in bore.most_common())
        same = sum(run["same"] for run in of_fault)
        whole = sum(run["same"] and "differ" not in run for run in of_fault)
        lines.append(
            f"| {fault.name} | {len(of_fault)} | {sum(run['struck'] for run in of_fault)} | "
            f"{sum(again) / len(again):.1f}, {max(again)} | {words} | {same} | {whole} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments and runs the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", default="", help="faults whose name has this")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.FATAL)
    runs = Runs(arguments.out.absolute())
    runs.out.mkdir(parents=True)
    began = time.monotonic()
    runs.prepare()
    expected = {}
    chosen = [fault for fault in FAULTS if arguments.only in fault.name]
    for processes in sorted({fault.processes for fault in chosen}):
        workdir = runs.out / f"undisturbed_{processes}"
        runs.finish(workdir, processes=processes)
        expected[processes] = outcome(workdir)
    # Two processes on one machine are slow: they meet their faults half as often.
    rounds = itertools.cycle([chosen, [fault for fault in chosen if fault.processes == 1]])
    order = itertools.islice(itertools.chain.from_iterable(rounds), arguments.runs)
    writing = threading.Lock()

    def one(numbered: tuple[int, Fault]) -> dict[str, Any]:
        found = disturb(runs, *numbered, expected, arguments.seed)
        with writing, (runs.out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
            print(f"{time.monotonic() - began:6.0f} s", json.dumps(found), flush=True)
        return found

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        found = list(pool.map(one, enumerate(order)))
    print(f"\n{table(found)}\n")
    good = sum(run["struck"] and run["same"] and "differ" not in run for run in found)
    print(f"{good} of {len(found)} runs as undisturbed, in {time.monotonic() - began:.0f} s")
    if good < len(found):
        sys.exit(1)


if __name__ == "__main__":
    main()

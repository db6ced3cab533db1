"""Times parts of usfm, one JSON line a measurement.

python tools/benchmark.py NAME ... [--peer=transformers] [--case=vits16] [--data=FM_UIA_FOLDER]

A line holds name, value, unit, peer (what it is compared with, or null), ratio (to that peer) and
conditions. Names: build, checkpoint, input, model, step, surgery. Peers need a Python of their own:
PEER_PY says which.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tools.benchmarks import build, checkpoint, input, model, step, surgery

PEERS = {"model": "transformers", "surgery": "torchjd"}
BENCHMARKS = {
    "build": build.measure,
    "checkpoint": checkpoint.measure,
    "input": input.measure,
    "model": model.measure,
    "step": step.measure,
    "surgery": surgery.measure,
}


def main() -> None:
    """Runs the named benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--peer", choices=PEERS.values(), help="of model, of surgery")
    parser.add_argument("--case", choices=surgery.CASES, default="vit6", help="of surgery")
    parser.add_argument("--data", default="", help="of input: an FM_UIA folder, not phantoms")
    arguments = parser.parse_args()
    peer = arguments.peer
    if peer and peer not in (PEERS.get(name) for name in arguments.names):
        parser.error(f"--peer={peer} is a peer of none of {', '.join(arguments.names)}")
    for name in arguments.names:
        options: dict[str, Any] = (
            {"peer": peer if PEERS[name] == peer else None} if name in PEERS else {}
        )
        if name == "surgery":
            options["case"] = arguments.case
        if name == "input":
            options["data"] = arguments.data
        for line in BENCHMARKS[name](**options):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

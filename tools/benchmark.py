"""Times parts of usfm, one JSON line a measurement.

python tools/benchmark.py NAME ... [--peer=transformers]

A line holds name, value, unit, peer (what it is compared with, or null), ratio (to that peer) and
conditions. Names: model, step. Peers need a Python of their own: PEER_PY says which.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tools.benchmarks import model, step

BENCHMARKS = {"model": model.measure, "step": step.measure}


def main() -> None:
    """Runs the named benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--peer", choices=["transformers"], help="of model; needs $PEER_PY")
    arguments = parser.parse_args()
    for name in arguments.names:
        options = {"peer": arguments.peer} if name == "model" else {}
        for line in BENCHMARKS[name](**options):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

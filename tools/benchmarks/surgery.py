"""benchmark surgery: what task gradients kept apart cost, as multiples of the plain joint step.

27 tasks of 4 images each, a vision transformer shared by all, a linear head a task; forward and
backward pass without an optimizer. Memory is XLA's own figure of a program's temporary arrays.
"""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from tools.benchmarks.timing import Line, alternating, conditions, ratio
from tools.benchmarks.worker import peer_python, started
from usfm.models import functional
from usfm.models.dinov3 import VARIANTS, DINOv3, Variant
from usfm.objectives import chain, multitask
from usfm.objectives.functions import Functions
from usfm.training.method import layer_of

PEER = pathlib.Path(__file__).with_name("peer_torchjd.py")
PEER_METHODS = (
    "upgrad_autojac",
    "upgrad_autogram",
    "upgrad_autogram_images",
    "pcgrad_autojac",
    "pcgrad_autogram",
    "pcgrad_libmtl",
)
# Few: most take some 20 of torch's plain steps.
PEER_ROUNDS = 3
TASKS, EXAMPLES, CLASSES = 27, 4, 10
# 8 x 8 patches each, as 64 px in patches of 8 have.
CASES = {"vit6": Variant(192, 6, 3, 768), "vits16": VARIANTS["vits16"]}
IMAGE_SIZE = 128  # pixels a side
ENGINES = {
    "plain": {"method": "sum", "engine": "plain"},
    "stack/pcgrad": {"method": "pcgrad", "engine": "stack"},
    "stack/upgrad": {"method": "upgrad", "engine": "stack"},
    "stack/graddrop": {"method": "graddrop", "engine": "stack"},
    "plain/uncertainty": {"method": "uncertainty", "engine": "plain"},
    "layer/gradnorm": {"method": "gradnorm", "engine": "layer"},
    "stream/graddrop": {"method": "graddrop", "engine": "stream"},
    "stack_map/pcgrad": {"method": "pcgrad", "engine": "stack_map", "at_once": 1},
    "stack_map_3/pcgrad": {"method": "pcgrad", "engine": "stack_map", "at_once": 3},
    "stack_map_9/pcgrad": {"method": "pcgrad", "engine": "stack_map", "at_once": 9},
}
# Of a large model, the engines that differ most: each takes seconds and gigabytes.
ENGINES_OF = {"vits16": ("plain", "stack/pcgrad", "stack_map_3/pcgrad", "stream/graddrop")}


def measure(peer: str | None = None, case: str = "vit6") -> Iterator[Line]:
    """Time and memory of each engine, and of the peer's beside its own plain step.

    Args:
        peer: "torchjd" for TorchJD and LibMTL.
        case: of CASES.
    """
    functions, params, batch = _problem(CASES[case])
    chosen = ENGINES_OF.get(case, tuple(ENGINES))
    programs = {name: _program(functions, params, batch, ENGINES[name]) for name in chosen}
    runs = {name: lambda p=program: p(params, batch) for name, (program, _) in programs.items()}
    seconds = alternating(runs)
    stated = conditions() | {
        **dataclasses.asdict(CASES[case]), "image_size": IMAGE_SIZE, "tasks": TASKS,
        "examples": EXAMPLES, "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }  # fmt: skip
    for name, of_name in seconds.items():
        for what, value, unit, times in (
            ("time", statistics.median(of_name), "s", ratio(of_name, seconds["plain"])),
            ("memory", programs[name][1] / 2**20, "MiB",
             round(programs[name][1] / programs["plain"][1], 3)),
        ):  # fmt: skip
            yield {
                "name": f"surgery/{case}/{name}/{what}",
                "value": round(value, 4),
                "unit": unit,
                "peer": None if name == "plain" else f"surgery/{case}/plain/{what}",
                "ratio": None if name == "plain" else times,
                "conditions": stated,
            }
    if peer is not None:
        for method in PEER_METHODS:
            yield from _of_peer(case, method, stated)


def _problem(variant: Variant) -> tuple[Functions, Any, dict[str, jax.Array]]:
    """The functions, random parameters and a random batch of the benchmark's model."""

    def make(rngs: Any) -> DINOv3:
        return DINOv3(variant, jnp.dtype("float32"), rngs)

    structure, taps = functional.structure(make), (variant.layers - 1,)

    def encode(params: Any, image: jax.Array, task: jax.Array, **_: Any) -> Any:
        return functional.merge(structure, params["encoder"])(image, taps).maps, {}

    def encode_slots(params: Any, image: jax.Array, task: jax.Array, **_: Any) -> Any:
        maps, aux = encode(params, image.reshape(-1, *image.shape[2:]), task)
        return jnp.moveaxis(maps.reshape(1, TASKS, EXAMPLES, *maps.shape[2:]), 1, 0), aux

    def decode(params: Any, kind: str, maps: jax.Array, task: jax.Array) -> Any:
        return {"logits": maps[0].mean((1, 2)) @ params["heads"][kind][task]}

    def loss(kind: str, outputs: Any, labels: Any, valid: jax.Array) -> Any:
        logs = jax.nn.log_softmax(outputs["logits"])
        right = jnp.take_along_axis(logs, labels["label"][:, None], 1)
        return -right.sum(), valid.sum().astype(jnp.float32)

    kind, key = "classification", jax.random.key(0)
    params = {
        "encoder": jax.jit(lambda key: functional.init(make, key))(key),
        "decoders": {kind: {}},
        "heads": {kind: 0.02 * jax.random.normal(key, (TASKS, variant.width, CLASSES))},
    }
    shape = (TASKS, EXAMPLES)
    batch = {
        "image": jax.random.normal(key, (*shape, IMAGE_SIZE, IMAGE_SIZE, 3)),
        "task": jnp.arange(TASKS),
        "valid": jnp.ones(shape, bool),
        "label": jax.random.randint(key, shape, 0, CLASSES),
    }
    stacks = ("encoder/blocks",) if functional.unrolls() else ()
    functions = Functions(encode, decode, loss, {kind: TASKS}, TASKS, encode_slots, stacks)
    return functions, params, batch


def _program(
    functions: Functions, params: Any, batch: dict[str, jax.Array], settings: dict[str, Any]
) -> tuple[Callable[..., Any], int]:
    """A compiled gradient, and the bytes of its temporary arrays and its results."""
    weighting = chain.make(settings["method"])
    how = {name: value for name, value in settings.items() if name != "method"}
    if how["engine"] == "layer":
        how["layer"] = layer_of(params, "^encoder/norm/", layers={})

    def step(params: Any, batch: dict[str, jax.Array]) -> Any:
        out = multitask.answer(
            functions, params, batch, weighting.init(TASKS), jax.random.key(1),
            weighting=weighting, **how,
        )  # fmt: skip
        return out.losses, out.present, out.grads

    compiled = jax.jit(step).lower(params, batch).compile()
    memory = compiled.memory_analysis()
    assert memory is not None  # every backend of ours has it
    return compiled, memory.temp_size_in_bytes + memory.output_size_in_bytes


def _of_peer(case: str, method: str, stated: Line) -> Iterator[Line]:
    """Time and memory of one of the peer's methods, as multiples of torch's own plain step."""
    python, large = peer_python("torch, torchjd and LibMTL"), str(1 << 40)
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_=large, MALLOC_TRIM_THRESHOLD_=large)
    environment.pop("GLIBC_TUNABLES", None)  # they would be taken instead
    seconds: dict[str, list[float]] = {"plain": [], method: []}
    with started(python, str(PEER), case, method, environment=environment) as worker:
        about = json.loads(worker.about)
        fits = about["mib"] is not None
        for _ in range(PEER_ROUNDS if fits else 0):
            for name, of_name in seconds.items():
                of_name.append(float(worker.run(name)))
    line = {"name": f"surgery/{case}/torch/{method}/memory", "value": None, "unit": "MiB",
            "peer": f"torch's plain step in {case}", "ratio": None,
            "conditions": stated | about}  # fmt: skip
    if fits:
        yield line | {
            "name": f"surgery/{case}/torch/{method}/time",
            "value": round(statistics.median(seconds[method]), 4),
            "unit": "s",
            "ratio": ratio(seconds[method], seconds["plain"]),
        }
        line["value"] = round(about["mib"], 1)
        line["ratio"] = round(about["mib"] / about["plain_mib"], 3)
    yield line

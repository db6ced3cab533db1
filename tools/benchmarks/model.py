"""benchmark model: the encoder's training step, beside the device's matrix products and a peer.

On a CPU vits16 at 224, batch 8, float32; on an accelerator vitl16 at 256, bfloat16. Then what
mixture-of-experts layers cost over the plain encoder, beside what their products would.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tools.benchmarks.timing import Line, alternating, conditions, ratio
from tools.benchmarks.worker import Worker, peer_python, started
from usfm.models import functional
from usfm.models.dinov3 import PATCH, PREFIX, VARIANTS, DINOv3
from usfm.models.moe import Mixture, capacity_of

PEER = pathlib.Path(__file__).with_name("peer_transformers.py")
# Dense float32 or bfloat16 peaks as published, FLOP/s without sparsity, by jax's device_kind.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder and a batch of images to train it on."""

    variant: str
    image_size: int
    batch: int
    dtype: str
    mixture: Mixture | None = None
    product: int = 2048  # rows, columns and depth of the products that stand for the ceiling

    @property
    def tokens(self) -> int:
        """Of an image."""
        return (self.image_size // PATCH) ** 2 + PREFIX

    @property
    def forward_flops(self) -> float:
        """Of all matrix products of a forward pass; a backward pass has twice as many.

        Top-k experts count at their capacity, the rows that they really multiply.
        """
        numbers = VARIANTS[self.variant]
        rows, width = self.batch * self.tokens, numbers.width
        mlp = (3 if numbers.gated else 2) * width * numbers.mlp_width
        products = numbers.layers * rows * (4 * width**2 + 2 * self.tokens * width)
        products += self.batch * (self.tokens - PREFIX) * 3 * PATCH**2 * width
        mixture = self.mixture
        mixed = 0 if mixture is None else len(mixture.layers)
        products += (numbers.layers - mixed) * rows * mlp
        if mixture is not None:
            served = rows if not mixture.top_k else capacity_of(mixture, rows)
            products += mixed * mixture.experts * (served * mlp + rows * width)
        return 2.0 * products


CPU = Case("vits16", 224, 8, "float32")
ACCELERATOR = Case("vitl16", 256, 64, "bfloat16", product=16384)


def measure(peer: str | None = None) -> Iterator[Line]:
    """Images a second and FLOP/s of training steps, beside a peer's and the ceiling's."""
    # So that the processes below find memory on the accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    on_cpu = jax.default_backend() == "cpu"
    case = CPU if on_cpu else ACCELERATOR
    half = tuple(range(VARIANTS[case.variant].layers // 2, VARIANTS[case.variant].layers))
    mixtures = {
        f"model/{case.variant}/moe_top2_of_8": Mixture(experts=8, layers=half, top_k=2),
        f"model/{case.variant}/moe_dense_4": Mixture(experts=4, layers=half),
    }
    cases = {name: dataclasses.replace(case, mixture=of) for name, of in mixtures.items()}
    plain, train = f"model/{case.variant}/gradient", f"model/{case.variant}/train"
    asked = {
        "model/ceiling": ("product", case),
        train: ("train", case),
        plain: ("gradient", case),
        **{name: ("gradient", of) for name, of in cases.items()},
    }
    # Each in a process of its own: what one leaves in memory would slow another's allocations.
    processes = {name: _worker(*what) for name, what in asked.items()}
    if peer is not None:
        processes[peer] = _peer(case)
    about, seconds = {}, {}
    # A CPU is shared, so all take turns; an accelerator's memory holds one at a time.
    for names in [list(processes)] if on_cpu else [[name] for name in processes]:
        with contextlib.ExitStack() as stack:
            workers = {name: stack.enter_context(processes[name]) for name in names}
            seconds |= alternating({name: worker.run for name, worker in workers.items()})
            about |= {name: worker.about for name, worker in workers.items()}

    ceiling = 2 * case.product**3 / statistics.median(seconds["model/ceiling"])
    stated = conditions() | {k: v for k, v in dataclasses.asdict(case).items() if k != "mixture"}
    stated["glibc_tunables"] = os.environ.get("GLIBC_TUNABLES", "")
    yield _line("model/ceiling", ceiling / 1e9, "GFLOP/s", conditions=stated)

    flops = 3 * case.forward_flops
    rate = flops / statistics.median(seconds[train])
    detail: Line = {
        "gflop_a_step": round(flops / 1e9, 1),
        "gflop_s": round(rate / 1e9, 1),
        "share_of_ceiling": round(
            flops / (2 * case.product**3) * ratio(seconds["model/ceiling"], seconds[train]), 3
        ),
    }
    if peak := PEAKS.get(jax.devices()[0].device_kind):
        detail["mfu"] = round(rate / peak, 3)
    yield _line(
        train,
        case.batch / statistics.median(seconds[train]),
        "images/s",
        peer=None if peer is None else f"{peer}: {about[peer]}",
        ratio=None if peer is None else ratio(seconds[peer], seconds[train]),
        conditions=stated | detail,
    )
    for name, of in cases.items():
        times = ratio(seconds[name], seconds[plain])
        of_flops = of.forward_flops / case.forward_flops
        yield _line(
            name,
            times,
            "times the plain gradient's time",
            peer="ratio of FLOPs",
            ratio=round(times / of_flops, 3),
            conditions=stated | {"flop_ratio": round(of_flops, 3), **json.loads(about[name])},
        )


def _line(name: str, value: float, unit: str, **rest: object) -> Line:
    return {"name": name, "value": round(value, 3), "unit": unit, "peer": None, "ratio": None,
            **rest}  # fmt: skip


def _product(case: Case) -> Callable[[], Any]:
    matrix = jax.random.normal(jax.random.key(0), (case.product, case.product), case.dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(matrix)


def _pieces(case: Case) -> tuple[Any, Callable[..., Any], tuple[jax.Array, jax.Array | None]]:
    """Parameters, (params, images, condition) -> (loss, routing), and random inputs."""

    def make(rngs: Any) -> DINOv3:
        return DINOv3(VARIANTS[case.variant], jnp.dtype(case.dtype), rngs, mixture=case.mixture)

    structure = functional.structure(make)
    taps = (VARIANTS[case.variant].layers - 1,)

    def loss(params: Any, images: jax.Array, condition: jax.Array | None) -> Any:
        out = functional.merge(structure, params)(
            images.astype(case.dtype), taps, condition=condition, train=True
        )
        routing = {name: out.routing[name] for name in ("load", "dropped") if out.routing}
        return jnp.square(out.tokens.astype(jnp.float32)).mean(), routing

    params = jax.jit(lambda key: functional.init(make, key))(jax.random.key(0))
    shape = (case.batch, case.image_size, case.image_size, 3)
    images = jax.random.normal(jax.random.key(1), shape)
    condition = None
    if case.mixture is not None:
        condition = jax.random.normal(jax.random.key(2), (case.batch, VARIANTS[case.variant].width))
    return params, loss, (images, condition)


def _gradient(case: Case) -> Callable[[], Any]:
    """The loss and its gradient, without an optimizer."""
    params, loss, inputs = _pieces(case)
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda: gradient(params, *inputs)


def _trainer(case: Case) -> Callable[[], Any]:
    """A whole training step with AdamW, which uses its state's memory again."""
    params, loss, inputs = _pieces(case)
    optimizer = optax.adamw(1e-4)
    state = params, jax.jit(optimizer.init)(params)

    def step(state: Any, inputs: Any) -> Any:
        params, moments = state
        gradient = jax.grad(lambda p: loss(p, *inputs)[0])(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments

    compiled = jax.jit(step, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state = compiled(state, inputs)
        return state

    return run


def _routing(case: Case) -> Line:
    """What the timed mixture drops, and the shares of its most and least loaded expert."""
    if case.mixture is None:
        return {}
    (_, routing), _ = _gradient(case)()
    load = routing["load"].mean((0, 1))
    return {
        "experts": case.mixture.experts,
        "capacity": case.mixture.capacity if case.mixture.top_k else None,
        "dropped": float(routing["dropped"].mean()),
        "largest_load": round(float(load.max()), 3),
        "smallest_load": round(float(load.min()), 3),
    }


RUNS = {"product": _product, "train": _trainer, "gradient": _gradient}


def _worker(kind: str, case: Case) -> contextlib.AbstractContextManager[Worker]:
    return started(sys.executable, "-m", "tools.benchmarks.model", kind, repr(case))


def _peer(case: Case) -> contextlib.AbstractContextManager[Worker]:
    python = peer_python("torch and transformers")
    numbers = VARIANTS[case.variant]
    settings = {
        "hidden_size": numbers.width,
        "num_hidden_layers": numbers.layers,
        "num_attention_heads": numbers.heads,
        "intermediate_size": numbers.mlp_width,
        "image_size": case.image_size,
        "batch": case.batch,
    }
    return started(python, str(PEER), json.dumps(settings))


def work(kind: str, case: Case) -> None:
    """A worker: says what its mixture does, then makes a step for every line of its input."""
    run = RUNS[kind](case)
    jax.block_until_ready(run())
    print(json.dumps(_routing(case)), flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(run())
        print("done", flush=True)


if __name__ == "__main__":
    work(sys.argv[1], eval(sys.argv[2]))  # the repr of a Case, from _worker

"""Multi-task gradients by TorchJD and LibMTL, for surgery.py to time: run by $PEER_PY.

Arguments: a case (CASES) and a method (METHODS). Every task has images of its own, and all share an
encoder, as in usfm. Says in one line of JSON what it is and what memory its steps take; then, for
every line it reads, makes a step and says its seconds: a plain step where the line is "plain", else
one of the method. So ratios are between steps that took turns in one process.

Memory is the peak of the resident set (VmHWM) above its level before the step, free memory having
been given back. A method that would not fit in LIMIT says null for its memory and ends: a limit set
on the process makes its allocation fail, long before the machine is out of memory. What is freed
stays in the process, so open one at a time.

The environment must hold MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_, both large (1 << 40):
otherwise every step asks the kernel for its memory anew, and torch is several times slower.
"""

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import resource
import sys
import time
import types
from collections.abc import Callable

import torch  # pyrefly: ignore[missing-import]
import torch.nn.functional as F  # pyrefly: ignore[missing-import]
import torchjd.aggregation as jd  # pyrefly: ignore[missing-import]
from torch import Tensor, nn  # pyrefly: ignore[missing-import]
from torchjd.autogram import Engine  # pyrefly: ignore[missing-import]
from torchjd.autojac import jac_to_grad, mtl_backward  # pyrefly: ignore[missing-import]

TASKS, EXAMPLES, CLASSES = 27, 4, 10
LIMIT = 12 << 30  # bytes
MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

Step = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A vision transformer and the size of its images."""

    depth: int
    width: int
    heads: int
    image_size: int
    patch: int
    cls: bool = False


CASES = {"vit6": Case(6, 192, 3, 64, 8), "vits16": Case(12, 384, 6, 128, 16, cls=True)}


class Positions(nn.Module):
    """Learned positions, after a CLS token where there is one.

    A module of its own, since autogram takes one that holds both parameters and modules as a whole.
    """

    def __init__(self, case: Case):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, case.width)) if case.cls else None
        tokens = (case.image_size // case.patch) ** 2 + case.cls
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, case.width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N + CLS, D]."""
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.positions


class Block(nn.Module):
    """x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, case: Case):
        super().__init__()
        self.heads = case.heads
        self.norm1, self.norm2 = nn.LayerNorm(case.width), nn.LayerNorm(case.width)
        self.qkv = nn.Linear(case.width, 3 * case.width)
        self.out = nn.Linear(case.width, case.width)
        self.up = nn.Linear(case.width, 4 * case.width)
        self.down = nn.Linear(4 * case.width, case.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Sequential):
    """Images [B, 3, H, W] to mean tokens [B, D]."""

    def __init__(self, case: Case):
        size = case.patch
        super().__init__(
            nn.Conv2d(3, case.width, size, size),
            nn.Flatten(2),
            Transpose(),
            Positions(case),
            *[Block(case) for _ in range(case.depth)],
            nn.LayerNorm(case.width),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The mean over tokens, CLS among them."""
        return super().forward(images).mean(1)


class Transpose(nn.Module):
    """[B, D, N] to [B, N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        """The transposed view."""
        return x.transpose(1, 2)


class MultiTask(nn.Module):
    """The encoder, a linear head a task, and images and labels of each task."""

    def __init__(self, case: Case):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder(case)
        self.heads = nn.ModuleDict({f"{t}": nn.Linear(case.width, CLASSES) for t in range(TASKS)})
        self.images = torch.randn(TASKS, EXAMPLES, 3, case.image_size, case.image_size)
        self.labels = torch.randint(CLASSES, (TASKS, EXAMPLES))

    def encode(self) -> Tensor:
        """[tasks * examples, D] of all images."""
        return self.encoder(self.images.flatten(0, 1))

    def losses(self, features: Tensor, reduction: str = "mean") -> list[Tensor]:
        """A scalar a task, or with reduction "none" its images' losses [examples]."""
        each = zip(self.heads.values(), features.chunk(TASKS), self.labels, strict=True)
        return [F.cross_entropy(head(x), y, reduction=reduction) for head, x, y in each]

    def norm(self) -> float:
        """Of the encoder's gradient."""
        return nn.utils.get_total_norm([p.grad for p in self.encoder.parameters()]).item()


def plain(model: MultiTask) -> Step:
    """Forward and backward of the sum of the losses."""
    return lambda: torch.stack(model.losses(model.encode())).sum().backward()


def autojac(model: MultiTask, aggregator: jd.Aggregator) -> Step:
    """TorchJD's Jacobian engine, a task after the other.

    All at once, by vmap, takes longer and more than the limit of memory.
    """

    def step() -> None:
        features = model.encode()
        mtl_backward(model.losses(features), features=features, parallel_chunk_size=1)
        jac_to_grad(model.encoder.parameters(), aggregator)

    return step


def autogram(model: MultiTask, weighting: jd.Weighting) -> Step:
    """TorchJD's Gramian engine, with one loss a task, as its documentation has it.

    So the heads' gradients are weighted too, unlike those of the others.
    """
    engine = Engine(model.encoder, batch_dim=None)

    def step() -> None:
        losses = torch.stack(model.losses(model.encode()))
        losses.backward(weighting(engine.compute_gramian(losses)))

    return step


def autogram_images(model: MultiTask, weighting: jd.Weighting) -> Step:
    """The Gramian engine with a loss an image, which back-propagates every image once.

    It is meant for weights of images; those of tasks need this sum over the Gramian's blocks.
    """
    engine = Engine(model.encoder, batch_dim=0)

    def step() -> None:
        losses = torch.cat(model.losses(model.encode(), "none")) / EXAMPLES
        gramian = engine.compute_gramian(losses)
        gramian = gramian.reshape(TASKS, EXAMPLES, TASKS, EXAMPLES).sum((1, 3))
        losses.backward(weighting(gramian).repeat_interleave(EXAMPLES))

    return step


def libmtl_pcgrad(model: MultiTask) -> Step:
    """LibMTL's PCGrad on inputs of several tasks, as its Trainer calls it.

    Each task's forward pass is one of its own, and the losses are written into a tensor of zeros.
    """
    # LibMTL imports torchvision for its models; an empty package in its place finds the rest.
    package = types.ModuleType("LibMTL")
    package.__path__ = importlib.util.find_spec("LibMTL").submodule_search_locations  # type: ignore
    sys.modules["LibMTL"] = package
    from LibMTL.architecture.HPS import HPS  # pyrefly: ignore[missing-import]
    from LibMTL.weighting.PCGrad import PCGrad  # pyrefly: ignore[missing-import]

    # LibMTL writes into gradients, which torch's zero_grad now removes unless told otherwise.
    zero_grad = {"zero_grad_share_params": lambda self: self.encoder.zero_grad(False)}
    shared = type("Shared", (HPS, PCGrad), zero_grad)(
        list(model.heads),
        lambda: model.encoder,
        model.heads,
        rep_grad=False,
        multi_input=True,
        device=torch.device("cpu"),
    )

    def step() -> None:
        losses = torch.zeros(TASKS)
        for t, task in enumerate(model.heads):
            losses[t] = F.cross_entropy(shared(model.images[t], task)[task], model.labels[t])
        shared.backward(losses)

    return step


METHODS: dict[str, Callable[[MultiTask], Step]] = {
    "plain": plain,
    "upgrad_autojac": lambda model: autojac(model, jd.UPGrad()),
    "upgrad_autogram": lambda model: autogram(model, jd.UPGradWeighting()),
    "upgrad_autogram_images": lambda model: autogram_images(model, jd.UPGradWeighting()),
    "pcgrad_autojac": lambda model: autojac(model, jd.PCGrad()),
    "pcgrad_autogram": lambda model: autogram(model, jd.PCGradWeighting()),
    "pcgrad_libmtl": libmtl_pcgrad,
}


def kib(what: str, file: str = "/proc/self/status") -> int:
    """A figure of the kernel: VmRSS or VmHWM of this process, KiB."""
    lines = pathlib.Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def peak_mib(step: Step) -> float | None:
    """What a step takes above the memory before it; None where it takes more than the limit."""
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS.
    before = kib("VmRSS")
    try:
        step()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return None
    return (kib("VmHWM") - before) / 1024


def main(case: str, method: str) -> None:
    """Says what it is, then makes a step for every line of its input."""
    if missing := [name for name in MALLOC if name not in os.environ]:
        raise SystemExit(f"peer_torchjd: set {' and '.join(missing)}, or torch is far too slow")
    torch.set_num_threads(os.cpu_count() or 1)
    limit = min(LIMIT, 1024 * kib("MemAvailable", "/proc/meminfo"))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def steps(name: str) -> tuple[MultiTask, Step]:
        # Each on a model of its own: autogram hooks itself into the modules for good.
        model = MultiTask(CASES[case])
        make = METHODS[name](model)

        def step() -> None:
            model.zero_grad()
            make()

        return model, step

    plain_model, plain_step = steps("plain")
    plain_step()
    plain_model.zero_grad()
    about = {
        **{name: importlib.metadata.version(name) for name in ("torch", "torchjd", "LibMTL")},
        "threads": torch.get_num_threads(),
        "limit_gib": round(limit / 2**30, 1),
        "plain_mib": peak_mib(plain_step),
        "plain_norm": plain_model.norm(),
    }
    model, step = steps(method)
    torch.manual_seed(1)  # so that PCGrad's orders are those of the other engines
    about["mib"] = peak_mib(step)
    about["norm"] = None if about["mib"] is None else model.norm()
    print(json.dumps(about), flush=True)
    if about["mib"] is None:
        return
    for line in sys.stdin:
        began = time.perf_counter()
        (plain_step if line.strip() == "plain" else step)()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

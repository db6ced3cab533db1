"""What every test may count on: 8 CPU devices, parsed flags, and small data."""

import dataclasses
import fcntl
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# XLA's own passes run, LLVM's do not: programs compile in a third of the time, and run slower. Here
# there is much to compile and little to run. The processes that tests start inherit both.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from tests import pages
from tests.pages import Page
from usfm import config as usfm_config
from usfm.data.builder import open_store
from usfm.data.folder import Folder, Row
from usfm.data.image import content_hash
from usfm.data.phantoms import write_folder
from usfm.data.store import Store
from usfm.tasks import TYPES, Task
from usfm.training import sharding

# grain's worker processes are handed the flags of this one, which pytest never parses.
flags.FLAGS.mark_as_parsed()

# Decoders that compile and run fast.
NARROW = {f"model.decoder_width.{kind}": 8 for kind in TYPES}
MINI = pathlib.Path(__file__).parents[2] / "shared/data/fm_uia_mini"

SMALL_TASKS = (
    Task("det", "detection", num_classes=1),
    Task("organ", "classification", num_classes=4),
    Task("plane", "classification", num_classes=2, flip_ok=False),
    Task("pts2", "regression", num_points=2),
    Task("pts3", "regression", num_points=3),
    Task("seg", "segmentation", num_classes=3),
)


@pytest.fixture
def mini() -> pathlib.Path:
    """The real images of fm_uia_mini."""
    if not MINI.is_dir():
        pytest.skip("fm_uia_mini is not beside the project (../shared/data/fm_uia_mini)")
    return MINI


def make_folder(root: pathlib.Path, rows: int = 7) -> Folder:
    """A folder of SMALL_TASKS as read_folder would return it, without its CSV files."""
    rng = np.random.default_rng(0)
    made = {task.id: tuple(_row(root, task, i, rng) for i in range(rows)) for task in SMALL_TASKS}
    return Folder((root,), SMALL_TASKS, made)


def _row(root: pathlib.Path, task: Task, index: int, rng: np.random.Generator) -> Row:
    height, width = 20 + 3 * index, 30 + index
    shape = (height, width, 3) if index % 2 else (height, width)
    pixels = rng.integers(0, 256, shape, np.uint8)
    row = Row(
        task_id=task.id,
        index=index,
        key=f"../{task.id}/{index}.png",
        csv=f"{task.id}.csv",
        line=index + 2,
        image_path=f"../{task.id}/{index}.png",
        mask_path="",
        label=None,
        box=None,
        points=(),
        height=height,
        width=width,
        content=content_hash(pixels),
    )
    folder = root / task.id
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{index}.png")
    if task.type == "classification":
        return dataclasses.replace(row, label=index % task.num_classes)
    if task.type == "detection":
        return dataclasses.replace(row, box=(2.0, 3.0, width - 4.0, height - 5.0))
    if task.type == "regression":
        points = tuple((1.0 + index, 2.0 + point) for point in range(task.num_points))
        return dataclasses.replace(row, points=points)
    mask = rng.integers(0, task.num_classes, (height, width), np.uint8)
    Image.fromarray(mask).save(folder / f"{index}_mask.png")
    return dataclasses.replace(
        row, mask_path=f"../{task.id}/{index}_mask.png", mask_content=content_hash(mask)
    )


@pytest.fixture
def small_folder(tmp_path) -> Folder:
    return make_folder(tmp_path / "folder")


@pytest.fixture(scope="session")
def make_store(tmp_path_factory) -> Callable[..., Store]:
    """Opens a store of SMALL_TASKS with so many rows a task; made once a session."""
    cache = tmp_path_factory.mktemp("stores")
    made: dict[int, Store] = {}

    def make(rows: int = 7) -> Store:
        if rows not in made:
            made[rows] = open_store(make_folder(cache / f"folder{rows}", rows), (16, 24), 1, cache)
        return made[rows]

    return make


PHANTOM_TASKS = (
    "FUGC",
    "breast_2cls",
    "breast_lesion",
    "cardiac_multi",
    "fetal_femur",
    "lung_2cls",
    "thyroid_nodule_det",
    "uterine_fibroid_det",
)


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory) -> pathlib.Path:
    """A folder that all processes of this session of tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def phantoms(session_dir) -> pathlib.Path:
    """A folder of two phantom tasks of each type, 12 rows each."""
    root = session_dir / "phantoms"
    write_folder(root, tasks=PHANTOM_TASKS, rows=12)
    return root


@pytest.fixture(scope="session", autouse=True)
def _programs(session_dir):
    """What one test compiled, another of this session need not."""
    jax.config.update("jax_compilation_cache_dir", str(session_dir / "programs"))


@pytest.fixture(scope="session")
def free_address() -> Callable[[], str]:
    """Gives a HOST:PORT of this machine that nobody listens on."""

    def find() -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{free.getsockname()[1]}"

    return find


@pytest.fixture
def one_device_mesh(monkeypatch):
    """Every mesh is of one device, which compiles fast. The one that `train` sets is taken back."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "expert": 1}, jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes: mesh)
    with jax.set_mesh(mesh):
        yield


@pytest.fixture
def make_config(phantoms, session_dir) -> Callable[..., ConfigDict]:
    """Makes the config of a small run within this process, on its 8 devices."""

    def make(**fields) -> ConfigDict:
        config = usfm_config.debug(usfm_config.base())
        small = {
            "tasks": "breast_2cls,lung_2cls",
            "data.root": str(phantoms),
            "data.cache_dir": str(session_dir / "stores"),
            "data.image_size": 32,
            "data.val_fraction": 0.5,
            **NARROW,
            "train.steps": 12,
            "train.slots": 8,
            "train.examples_per_slot": 1,
            "train.log_every": 1,
            "checkpoint.every_steps": 3,
        }
        config.update_from_flattened_dict(small | fields)
        return config

    return make


@pytest.fixture
def parse() -> type[Page]:
    """Reads the text of a page."""
    return Page


@pytest.fixture
def browse(tmp_path) -> Callable[..., dict[str, Any]]:
    """Opens a page in Chromium; see pages.browse."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or ""
    if not chromium:
        pytest.skip("there is no Chromium (Debian: apt install chromium)")
    return functools.partial(pages.browse, chromium, scratch=tmp_path)


@pytest.fixture
def check_drawn(browse) -> Callable[[pathlib.Path, int], None]:
    """Opens a page that shows so many images and figures wide, on a phone and dark.

    It must tell no fault, draw all of them, and be no wider than the window but in boxes that the
    keyboard reaches; the first thing that this reaches is a link past the head.
    """

    def check(page: pathlib.Path, drawings: int) -> None:
        wide, dark = (browse(page, (1200, 900), dark=dark) for dark in (False, True))
        phone = browse(page, (390, 844))
        for seen in (wide, phone, dark):
            assert (seen["faults"], seen["console"], seen["overflows"]) == ([], [], False)
            assert seen["drawn"] == drawings > 0
            assert seen["out_of_reach"] == []
            assert seen["first"] == ["Skip to the content", True]
        assert phone["scrolling"] > 0
        assert wide["background"] != dark["background"]

    return check


@dataclasses.dataclass(frozen=True)
class Run:
    """A small run of the command line: 24 steps of one slot a type, so tasks take turns.

    Its multi-task method remembers, and the inner products of its gradients are recorded. The
    programs it compiles are kept for the session: a later run of the same starts at once.
    """

    data: pathlib.Path
    shared: pathlib.Path
    started: list[subprocess.Popen[str]]

    def command(self, workdir: pathlib.Path, *flags: str) -> list[str]:
        config = {
            "data.root": self.data,
            "data.cache_dir": self.shared / "stores",
            "data.image_size": 32,
            "data.val_fraction": 0.5,
            "data.class_balanced": True,
            "data.temperature_schedule": "9=1",
            **NARROW,
            "train.steps": 24,
            "train.slots": 4,
            "train.examples_per_slot": 2,
            "train.log_every": 1,
            "checkpoint.every_steps": 6,
            "multitask.method": "gradvac",
            "multitask.gramian_ema": 0.9,
            "multitask.engine": "stack",
            "multitask.record": True,
        }
        return [
            *(sys.executable, "-m", "usfm.main", "--config=configs/fm_uia.py:debug"),
            *(f"--config.{field}={value}" for field, value in config.items()),
            *(f"--workdir={workdir}", *flags),
        ]

    def start(self, workdir: pathlib.Path, *flags: str) -> subprocess.Popen[str]:
        """Starts the process, in a group of its own."""
        process = subprocess.Popen(
            self.command(workdir, *flags),
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ
            | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": f"{self.shared}/programs"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def __call__(self, workdir: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        process = self.start(workdir, *flags)
        output, errors = process.communicate(timeout=1200)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="session")
def run(phantoms, session_dir) -> Iterator[Run]:
    run = Run(phantoms, session_dir, [])
    yield run
    for process in run.started:  # by a test that failed
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def trained(run, session_dir) -> pathlib.Path:
    """The workdir of a run that nothing disturbed, scored before and after."""
    workdir = session_dir / "trained"
    with (session_dir / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not workdir.exists():
            done = run(workdir, "--config.evaluate.before_training=True")
            (session_dir / "trained.txt").write_text(f"{done.stdout}\n---\n{done.stderr}")
            assert done.returncode == 0, done.stderr
    return workdir

"""Checkpoints: the whole train state, written by orbax while training goes on."""

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from usfm import processes
from usfm.data.source import say
from usfm.errors import UserError
from usfm.models.functional import path_name
from usfm.tasks import Task
from usfm.training.room import hindrance
from usfm.training.state import TrainState

# The file that orbax writes into every checkpoint.
MARK = "_CHECKPOINT_METADATA"
# How often the last state of a run is tried to be saved, and the seconds in between.
TRIES, PAUSE = 4, 2.0


_write_failed = False


class _HinderedError(OSError):
    """What all processes know to speak against a write."""


def write_failed() -> bool:
    """Whether a write of this process ever failed.

    orbax' threads of such a write can wait for each other for ten minutes, and the interpreter
    for them at its exit.
    """
    return _write_failed


class Checkpoints:
    """The checkpoints of one run; use as a context manager, which waits for the last write.

    Args:
        directory: where they lie, a folder a step; gs:// too.
        keep: how many of the newest stay. None: they are only read, perhaps while another process
            goes on training.
        every: those of its multiples stay too; 0 = none do.
        metric: name of what `save` is given scores of; the best one stays too. "" = none is.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep: int | None = None,
        *,
        every: int = 0,
        metric: str = "",
    ):
        self._directory = epath.Path(directory)
        if "://" not in os.fspath(directory):  # of an address, pathlib would make a local folder
            self._directory = self._directory.absolute()
        self._keep, self._every, self._metric = keep, every, metric
        self._writing: int | None = None  # the step that is on its way to the disk
        # The step that could not be written, and why, since the last one that could.
        self._failure: tuple[int, Exception] | None = None
        self._closed = False  # until the next save, after one that failed
        try:
            self._manager = self._open()
        except OSError as error:
            raise UserError(f"{self._directory} cannot be opened: {_reason(error)}") from error
        except ImportError as error:
            raise UserError(
                f"{self._directory} cannot be opened: {_reason(error)}; pip install 'usfm[gcs]'"
            ) from error

    def _open(self) -> ocp.CheckpointManager:
        if self._keep is not None and processes.is_first():
            _clear(self._directory)
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        arrays, json = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
        registry.add("state", ocp.args.PyTreeSave, arrays)
        registry.add("state", ocp.args.PyTreeRestore, arrays)
        registry.add("meta", ocp.args.JsonSave, json)
        registry.add("meta", ocp.args.JsonRestore, json)
        kept: list[Any] = [checkpoint_managers.LatestN(self._keep)]
        if self._every:
            kept.append(checkpoint_managers.EveryNSteps(self._every))
        if self._metric:
            best = checkpoint_managers.BestN(
                get_metric_fn=self._comparable, n=1, keep_checkpoints_without_metrics=False
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            # orbax' own max_to_keep, beside a best_fn, deletes the newest.
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            best_fn=self._comparable if self._metric else None,  # scores are kept beside the state
            create=self._keep is not None,
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(self._directory, options=options, handler_registry=registry)

    def _comparable(self, scored: dict[str, Any]) -> float:
        # Scores of another metric, before the config was changed, say nothing beside this one's.
        return scored["score"] if scored["metric"] == self._metric else -math.inf

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.wait()
        else:
            self._settle()  # which says what goes wrong: the run ends by another error
        if not self._closed:
            self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The kept step that scored best by the newest scored one's metric; None without scores."""
        scores = {step: self._manager.metrics(step) for step in self.steps()}
        scored = [(step, score) for step, score in scores.items() if score]
        if not scored:
            return None
        metric = scored[-1][1]["metric"]
        of_metric = [(s["score"], step) for step, s in scored if s["metric"] == metric]
        return max(of_metric)[1]

    def steps(self) -> list[int]:
        """The kept steps, rising."""
        if not self._directory.exists():
            return []
        return sorted(s for s in self._manager.all_steps() if (self._path(s) / MARK).exists())

    def save(
        self,
        step: int,
        state: TrainState,
        meta: dict[str, Any],
        score: float = math.nan,
        *,
        last: bool = False,
    ) -> None:
        """Starts to write; the state may be donated as soon as this returns.

        Where the disk is full, read-only or gone this is said, and the next call tries again.

        Args:
            step: of the state.
            state: of the run.
            meta: JSON to keep beside it.
            score: of the metric, the higher the better; NaN = it has none.
            last: no call follows: waits until the step is on disk, and tries again where it fails.

        Raises:
            UserError: the last state cannot be written. A run of several processes ends at once
                with what went wrong when a write fails that nothing spoke against: they do not all
                know of it.
        """
        self._settle()
        self._begin(step, state, meta, score)
        if not last:
            return
        for _ in range(TRIES - 1):
            self._settle()
            if self._failure is None:
                return
            time.sleep(PAUSE)
            self._begin(step, state, meta, score)
        self.wait()

    def wait(self) -> None:
        """Returns when what was saved last is on disk.

        Raises:
            UserError: it could not be written.
        """
        self._settle()
        if self._failure is not None:
            raise self._unsaved(*self._failure)

    def _unsaved(self, step: int, error: Exception) -> UserError:
        newest = self.latest()
        lost = f"steps after {newest}" if newest else "all steps"
        return UserError(
            f"{lost} up to {step} are not saved: {self._path(step)} cannot be written "
            f"({_reason(error)}); make room there, or make it writable, and run the same "
            "command again"
        )

    def _begin(self, step: int, state: TrainState, meta: dict[str, Any], score: float) -> None:
        metrics = None if math.isnan(score) else {"metric": self._metric, "score": score}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_as_dict(state)), meta=ocp.args.JsonSave(meta)
        )
        self._writing = step
        try:
            if jax.process_count() > 1:
                self._agree(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            if self._closed:
                self._manager, self._closed = self._open(), False
            self._manager.save(step, args=items, metrics=metrics, force=True)
        except Exception as error:
            self._failed(step, error)

    def _agree(self, size: int) -> None:
        """Raises in every process what hinders any of them: a failure in orbax is of one alone."""
        gone = not self._directory.exists()
        answers = processes.gather((gone, hindrance(self._directory, size)))
        if any(gone for gone, _ in answers):
            self._close()  # which knows of checkpoints that are no more
        for number, (_, text) in enumerate(answers):
            if text:
                raise _HinderedError(f"process {number}: {text}")

    def _settle(self) -> None:
        """Waits for the write under way, if any; what goes wrong with it is said."""
        step, self._writing = self._writing, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(step, error)
            return
        if self._failure is not None:
            say(f"checkpoint {self._path(step)} is written: all is saved again")
            self._failure = None

    def _failed(self, step: int, error: Exception) -> None:
        agreed = isinstance(error, _HinderedError)
        if jax.process_count() > 1 and not agreed:
            raise error
        if self._failure is None:
            say(
                f"checkpoint {self._path(step)} could not be written ({_reason(error)}); training "
                "goes on, and every next one is tried"
            )
        global _write_failed
        _write_failed |= not agreed
        self._failure, self._writing = (step, error), None
        self._close()  # orbax goes on as if what failed were there

    def _close(self) -> None:
        if not self._closed:
            with contextlib.suppress(Exception):
                self._manager.close()
        self._closed = True

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state, as `describe` made it.

        Raises:
            UserError: the checkpoint is damaged. The other methods that read raise it too.
        """
        return self._read(step, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state of a step, placed as `abstract` says.

        Raises:
            UserError: paths, shapes or types differ; it names each.
        """
        wanted = _as_dict(abstract)
        self._compare(step, wanted)
        args = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=args)
        return TrainState(**self._read(step, state=args)["state"])

    def restore_parts(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Some fields of a step's state, or of their arrays, placed as `abstract` says.

        Raises:
            UserError: as `restore` does.
        """
        self._compare(step, abstract, partial=True)
        args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(abstract, restore_args=args, partial_restore=True)
        return self._read(step, state=args)["state"]

    def arrays(self, step: int, *fields: str) -> dict[str, np.ndarray]:
        """Arrays of a step by their paths, on the host, whatever mesh they were saved from.

        Args:
            step: whose.
            *fields: of the state, to be read alone; none given = all.
        """
        shapes = self._shapes(step)
        wanted = {name: shapes[name] for name in fields or shapes if name in shapes}
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=on_host, partial_restore=True)
        tree = self._read(step, state=args)["state"]
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): np.asarray(leaf) for path, leaf in leaves}

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _read(self, step: int, **items: Any) -> Any:
        with self._explained(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _shapes(self, step: int) -> Any:
        with self._explained(step):
            found = self._manager.item_metadata(step)["state"]
            if found is None:
                raise FileNotFoundError("nothing says what its state holds")
            return found.tree

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        # Whatever fails here has no other cause: what was asked for fits what was saved.
        try:
            yield
        except Exception as error:
            raise UserError(
                f"checkpoint {self._path(step)} cannot be read ({_reason(error)}); if it is "
                "damaged, remove it to go on from the one before"
            ) from error

    def _compare(self, step: int, wanted: Any, *, partial: bool = False) -> None:
        """Compares first: orbax casts a dtype silently and words other differences badly."""

        def describe(tree: Any) -> dict[str, str]:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {path_name(p): f"{np.dtype(a.dtype).name}{list(a.shape)}" for p, a in leaves}

        saved, asked = describe(self._shapes(step)), describe(wanted)
        faults = [
            f"  {name}: {saved.get(name, 'absent')} in the checkpoint, "
            f"{asked.get(name, 'absent')} in this run"
            for name in sorted(asked if partial else saved.keys() | asked.keys())
            if saved.get(name) != asked.get(name)
        ]
        if faults:
            raise UserError(
                f"checkpoint {self._path(step)} does not fit this run's model and optimizer; use "
                "the config it was made with, or another --workdir:\n" + "\n".join(faults)
            )


def directory_of(config: ConfigDict, workdir: pathlib.Path) -> epath.Path:
    """Where the checkpoints of a run lie."""
    given = config.checkpoint.directory
    return epath.Path(given).expanduser() if given else epath.Path(workdir / "checkpoints")


def tasks_to_meta(tasks: tuple[Task, ...]) -> dict[str, Any]:
    """The tasks of a run as JSON, in the order that `task` indexes."""
    return {"tasks": [dataclasses.asdict(task) for task in tasks]}


def tasks_from_meta(meta: dict[str, Any]) -> tuple[Task, ...]:
    """The inverse of `tasks_to_meta`."""
    return tuple(Task(**task) for task in meta["tasks"])


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _reason(error: Exception) -> str:
    if isinstance(error, _HinderedError):
        return str(error)
    if "No space left" in str(error):
        return "no space left on the disk"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _clear(directory: epath.Path) -> None:
    """Removes what a killed process left half written or half deleted.

    orbax would take every folder with a number for a checkpoint, and write none before it.
    """
    for path in directory.iterdir() if directory.exists() else ():
        unfinished = ocp.utils.TMP_DIR_SUFFIX in path.name
        if unfinished or (path.name.isdigit() and not (path / MARK).exists()):
            path.rmtree()

"""Checkpoints: the whole train state, written by orbax while training goes on."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from usfm.errors import UserError
from usfm.tasks import Task
from usfm.training.sharding import path_name
from usfm.training.state import TrainState

# The file that orbax writes into every checkpoint.
MARK = "_CHECKPOINT_METADATA"


class Checkpoints:
    """The checkpoints of one run; use as a context manager, which waits for the last write.

    Args:
        directory: where they lie, a folder a step.
        keep: how many of the newest stay. None: they are only read, perhaps while another process
            goes on training.
    """

    def __init__(self, directory: pathlib.Path, keep: int | None = None):
        self._directory = directory.absolute()
        if keep is not None and jax.process_index() == 0:
            _clear(self._directory)
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        arrays, json = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
        registry.add("state", ocp.args.PyTreeSave, arrays)
        registry.add("state", ocp.args.PyTreeRestore, arrays)
        registry.add("meta", ocp.args.JsonSave, json)
        registry.add("meta", ocp.args.JsonRestore, json)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            create=keep is not None,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, handler_registry=registry
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The kept steps, rising."""
        if not self._directory.exists():
            return []
        return sorted(s for s in self._manager.all_steps() if (self._path(s) / MARK).exists())

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to write; the state may be donated as soon as this returns."""
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_as_dict(state)), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state: the tasks of the run.

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

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of a step by its path, on the host, whatever mesh it was saved from."""
        on_host = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), self._shapes(step)
        )
        tree = self._read(step, state=ocp.args.PyTreeRestore(restore_args=on_host))["state"]
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): np.asarray(leaf) for path, leaf in leaves}

    def _path(self, step: int) -> pathlib.Path:
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
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"checkpoint {self._path(step)} cannot be read ({why}); if it is damaged, remove "
                "it to go on from the one before"
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


def tasks_to_meta(tasks: tuple[Task, ...]) -> dict[str, Any]:
    """The tasks of a run as JSON, in the order that `task` indexes."""
    return {"tasks": [dataclasses.asdict(task) for task in tasks]}


def tasks_from_meta(meta: dict[str, Any]) -> tuple[Task, ...]:
    """The inverse of `tasks_to_meta`."""
    return tuple(Task(**task) for task in meta["tasks"])


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _clear(directory: pathlib.Path) -> None:
    """Removes what a killed process left half written or half deleted.

    orbax would take every folder with a number for a checkpoint, and write none before it.
    """
    for path in directory.glob("*"):
        unfinished = ocp.utils.TMP_DIR_SUFFIX in path.name
        if unfinished or (path.name.isdigit() and not (path / MARK).exists()):
            shutil.rmtree(path)

"""Checkpoints: the whole train state, written by orbax while training goes on."""

import dataclasses
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from usfm.tasks import Task
from usfm.training.sharding import path_name
from usfm.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run; use as a context manager, which waits for the last write."""

    def __init__(self, directory: epath.Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The kept steps, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to write; the state may be donated as soon as this returns."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state: the tasks of the run."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state of a step, placed as `abstract` says.

        Raises:
            ValueError: paths, shapes or types differ; it names each.
        """
        wanted = _as_dict(abstract)
        self._compare(step, wanted)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        return TrainState(**self._manager.restore(step, args=args)["state"])

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """The parameters of a step alone, placed as `abstract_params` says."""
        args = ocp.args.PyTreeRestore(
            item={"params": abstract_params},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract_params}),
            partial_restore=True,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of a step by its path, on the host, whatever mesh it was saved from."""
        shapes = self._manager.item_metadata(step)["state"]
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        tree = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): np.asarray(leaf) for path, leaf in leaves}

    def _compare(self, step: int, wanted: Any) -> None:
        """orbax casts a dtype silently and words other differences badly: compare first."""

        def describe(tree: Any) -> dict[str, str]:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {path_name(p): f"{np.dtype(a.dtype).name}{list(a.shape)}" for p, a in leaves}

        saved = describe(self._manager.item_metadata(step)["state"])
        asked = describe(wanted)
        faults = [
            f"  {name}: {saved.get(name, 'absent')} in the checkpoint, "
            f"{asked.get(name, 'absent')} in this run"
            for name in sorted(saved.keys() | asked.keys())
            if saved.get(name) != asked.get(name)
        ]
        if faults:
            raise ValueError(
                f"checkpoint {self._manager.directory}/{step} does not fit this run's model and "
                "optimizer; use the config it was made with, or another --workdir:\n"
                + "\n".join(faults)
            )


def tasks_to_meta(tasks: tuple[Task, ...]) -> dict[str, Any]:
    """The tasks of a run as JSON, in the order that `task` indexes."""
    return {"tasks": [dataclasses.asdict(task) for task in tasks]}


def tasks_from_meta(meta: dict[str, Any]) -> tuple[Task, ...]:
    """The inverse of `tasks_to_meta`."""
    return tuple(Task(**task) for task in meta["tasks"])


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}

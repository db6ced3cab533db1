"""What a run reads: the batches of its rows, and the rest of what is its own in a program."""

import dataclasses
from collections.abc import Mapping

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from usfm.data.folder import Folder
from usfm.data.mixing import Mix, stages_of
from usfm.data.pipeline import slot_batches
from usfm.data.source import class_counts, classes_of, open_store, training_rows
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.objectives.losses import class_weights
from usfm.training.step import Own


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        batches: this process's share of the batch of every step.
        mix: which tasks fill the slots.
        rows: task id -> number of its training rows.
        own: seed and class weights.
    """

    batches: grain.MapDataset
    mix: Mix
    rows: Mapping[str, int]
    own: Own

    def shares(self) -> list[str]:
        """What a person is told of the tasks' shares of the slots; nothing where all are alike."""
        stages = self.mix.stages
        if not any(len(set((stage.weights or {}).values())) > 1 for stage in stages):
            return []
        return [
            (f"share of slots from step {stage.start} on: " if stage.start else "share of slots: ")
            + ", ".join(
                f"{task_id} {share:.1%}" for task_id, share in self.mix.shares(stage).items()
            )
            for stage in stages
        ]

    def drawn(self, steps: int, examples_per_slot: int) -> str:
        """What a person is told of the images that the first steps of the run were of."""
        images = {task: n * examples_per_slot for task, n in self.mix.dealt(steps).items()}
        return "images drawn: " + ", ".join(
            f"{task_id} {count:,} ({count / self.rows[task_id]:.1f} a row)"
            for task_id, count in images.items()
        )


def inputs_of(config: ConfigDict, folder: Folder, splits: Splits, store: Store | None) -> Inputs:
    """The inputs of a config's run.

    Args:
        config: the run's.
        folder: whose rows to train on.
        splits: of that folder.
        store: of that folder, or of one with more tasks; None = it is opened, which may take long.
    """
    rows = training_rows(folder, splits, config.data)
    mix = Mix(folder.tasks, config.train.slots, stages_of(rows, config.data))
    classes = classes_of(folder, rows)
    counts = class_counts(folder.tasks, classes)
    if config.data.class_balanced:
        counts = np.minimum(counts, 1)  # all classes are drawn alike, so they count alike
    batches = slot_batches(
        store or open_store(config, folder),
        mix,
        rows,
        examples_per_slot=config.train.examples_per_slot,
        seed=config.train.seed,
        classes=classes if config.data.class_balanced else None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    own = Own(np.uint32(config.train.seed), class_weights(counts, config.train.class_balance))
    return Inputs(batches, mix, {task_id: len(of_task) for task_id, of_task in rows.items()}, own)

"""What a run reads: the batches of its rows, and the rest of what is its own in a program."""

import dataclasses
from collections.abc import Mapping

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from usfm.data.folder import Folder
from usfm.data.pipeline import slot_batches
from usfm.data.slots import mixing_weights, slots_per_type
from usfm.data.source import class_counts, training_rows
from usfm.data.splits import Splits
from usfm.data.store import Store
from usfm.objectives.losses import class_weights
from usfm.training.step import Own


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        batches: this process's share of the batch of every step.
        mixing: task id -> weight by which tasks fill slots.
        slots: slots of each type, in a batch's order.
        own: seed and class weights.
    """

    batches: grain.MapDataset
    mixing: Mapping[str, float]
    slots: Mapping[str, int]
    own: Own


def inputs_of(config: ConfigDict, folder: Folder, splits: Splits, store: Store) -> Inputs:
    """The inputs of a config's run.

    Args:
        config: the run's.
        folder: whose rows to train on.
        splits: of that folder.
        store: of that folder, or of one with more tasks.
    """
    rows = training_rows(folder, splits, config.data)
    mixing = mixing_weights(rows, config.data.temperature)
    batches = slot_batches(
        store,
        folder.tasks,
        rows,
        slots=config.train.slots,
        examples_per_slot=config.train.examples_per_slot,
        seed=config.train.seed,
        weights=mixing,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    slots = slots_per_type(folder.tasks, mixing, config.train.slots)
    weights = class_weights(class_counts(folder, rows), config.train.class_balance)
    return Inputs(batches, mixing, slots, Own(np.uint32(config.train.seed), weights))

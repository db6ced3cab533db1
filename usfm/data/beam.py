"""The same shards on Apache Beam: on one machine, or on many that share a file system."""

import pickle
from collections.abc import Callable, Sequence

from usfm.data.shards import Shard, write_shard
from usfm.errors import UserError


def writer(options: Sequence[str]) -> Callable[[Sequence[Shard]], None]:
    """A function that writes the shards that are not whole, as one pipeline for all tasks.

    The workers find the store's folder, and the images, under the same paths as this process.

    Args:
        options: of the pipeline and its runner, such as runner=FlinkRunner.

    Raises:
        UserError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam  # pyrefly: ignore[missing-import]
        from apache_beam.options import pipeline_options  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise UserError("--beam needs Apache Beam: pip install -e '.[beam]'") from error
    flags = pipeline_options.PipelineOptions([f"--{option}" for option in options])

    def write(shards: Sequence[Shard]) -> None:
        tickets = [_ticket(shard) for shard in shards if not shard.whole]
        with beam.Pipeline(options=flags) as pipeline:
            # Reshuffle, for runners would else fuse the steps and give all to one worker.
            _ = pipeline | beam.Create(tickets) | beam.Reshuffle() | "Write" >> beam.Map(_write)

    return write


def _ticket(shard: Shard) -> str:
    """Writes down what a shard holds: a pipeline's own description may have some megabytes only."""
    ticket = shard.file.with_name(f"{shard.file.name}.ticket")
    ticket.parent.mkdir(parents=True, exist_ok=True)
    ticket.write_bytes(pickle.dumps(shard))
    return str(ticket)


def _write(ticket: str) -> None:
    with open(ticket, "rb") as file:
        shard: Shard = pickle.load(file)
    try:
        write_shard(shard)
    except UserError as error:
        # Beam makes errors anew from their first argument, which of an ImageError names no file.
        raise UserError(str(error)) from error

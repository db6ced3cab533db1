"""What `--mode` chooses: each mode as one function of a config and a workdir."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm import processes
from usfm.data.faults import write_faults
from usfm.data.folder import Folder, Row
from usfm.data.image import read_image
from usfm.data.lines import DIRECTORY
from usfm.data.roots import are_there, identities
from usfm.data.source import cache_dir, open_folder, open_splits, rows_in, say, training_rows
from usfm.data.splits import Splits
from usfm.data.unlabelled import folder_of_images
from usfm.errors import UserError
from usfm.evaluation import trivial
from usfm.evaluation.evaluate import Evaluation, Trivial, evaluate, write
from usfm.evaluation.files import write_atomically
from usfm.evaluation.overlay import Example
from usfm.evaluation.predict import Predictor, make_predictor, programs_of
from usfm.evaluation.prediction import Answer, truth
from usfm.evaluation.report import write_report
from usfm.evaluation.submission import write_submission
from usfm.evaluation.table import text_table
from usfm.tasks import Task
from usfm.tasks.plans import select
from usfm.training import goodput, sharding
from usfm.training.checkpoint import Checkpoints, tasks_from_meta
from usfm.training.program import make_model
from usfm.training.state import evaluated_params, evaluated_parts
from usfm.training.train import pretrained, train


def run_train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, then scores the model (and before that the untrained one, where asked)."""
    usfm_config.begin(config, workdir)
    goodput.note(workdir, "begin")
    _check_shared(workdir)
    folder = _open_folder(config, workdir)
    splits = processes.in_turn(
        lambda: open_splits(config, folder, workdir if processes.is_first() else None)
    )
    _check_same(folder, splits)
    rows = rows_in(folder, splits, config.evaluate.part)
    before = workdir / "evaluation_before.json"
    if config.evaluate.before_training and any(rows.values()) and not before.exists():
        untrained, _ = _score(_untrained(config, folder), folder, splits, rows, {})
        goodput.note(workdir, "evaluated")
        if processes.is_first():
            write_atomically(before, json.dumps(untrained.report, indent=2).encode())
    train(config, workdir, folder, splits)
    gone = processes.agreed([str(root) for root in folder.roots if not root.exists()])
    if not config.evaluate.after_training:
        pass
    elif not any(rows.values()):
        say(f"part '{config.evaluate.part}' has no labelled row: not scored")
    elif gone:
        say(f"{', '.join(gone)} is gone: not scored; run --mode=evaluate when it is back")
    else:
        run_evaluate(usfm_config.read(workdir / "config.json"), workdir)
        goodput.note(workdir, "evaluated")
    say(str(goodput.goodput(goodput.read(workdir))))


def run_evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Scores the newest checkpoint: evaluation.json, evaluation_rows.csv, report.html, a table."""
    usfm_config.check(config)
    trained = usfm_config.read(workdir / "config.json")
    asked, known = identities(config.data), identities(trained.data)
    if asked != known and asked & known:
        raise UserError(
            f"data.root={config.data.root} has rows that the model was trained on: give all of "
            f"{trained.data.root}, or nothing of it"
        )
    predictor = _trained(config, workdir)
    folder = _open_folder(config, workdir)
    _check_tasks(predictor.tasks, folder)
    part, floors = config.evaluate.part, {}
    if asked == known:
        splits = open_splits(config, folder)
        floors = _floors(folder, splits, config.data)
    else:
        # Another folder than the one trained on: all its rows are scored, and the trivial
        # predictor still knows the training rows only.
        splits, part = _all_in_one(folder), "all"
        if are_there(trained.data):
            source = _open_folder(trained, workdir)
            floors = _floors(source, open_splits(trained, source), trained.data)
    rows = rows_in(folder, splits, part)
    if not any(rows.values()):
        raise UserError(
            f"{config.data.root} has no labelled row in part '{part}'; set evaluate.part to "
            "another of val, test and all"
        )
    result, examples = _score(predictor, folder, splits, rows, floors)
    if not processes.is_first():
        return
    write(result, workdir)
    before = workdir / "evaluation_before.json"
    untrained = json.loads(before.read_text()) if before.exists() else None
    if untrained is not None and untrained["parts"] != result.report["parts"]:
        untrained = None  # it was scored on other rows
    write_report(workdir, result.report, examples, before=untrained)
    print(text_table(result.report, untrained))
    print(f"\nreport: {workdir / 'report.html'}")


def run_predict(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Answers every row of data.root, labelled or not: workdir/predictions/.

    A folder without CSV files is taken as images, each of which is asked all chosen tasks.
    """
    usfm_config.check(config)
    predictor = _trained(config, workdir)
    root = pathlib.Path(config.data.root)
    if root.is_dir() and not (root / DIRECTORY).exists():
        asked = select(predictor.tasks, config.tasks)
        folder = processes.in_turn(
            lambda: folder_of_images(root, asked, cache_dir=cache_dir(config))
        )
        if processes.is_first():
            write_faults(workdir / "left_out.csv", folder.skipped)
        say(
            f"{root} has no {DIRECTORY}/: its images are asked {', '.join(t.id for t in asked)}; "
            f"{len(folder.skipped)} files are left out, see {workdir}/left_out.csv"
        )
    else:
        folder = _open_folder(config, workdir, require_labels=False)
        _check_tasks(predictor.tasks, folder)
    own = {task_id: processes.share(of_task) for task_id, of_task in folder.rows.items()}
    with jax.set_mesh(predictor.mesh):
        write_submission(predictor(folder, own), folder, workdir / "predictions")
    rows = sum(len(of_task) for of_task in folder.rows.values())
    print(f"{rows} rows answered: {workdir / 'predictions'}")


def run_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains what a study compares, and says which tasks to train together."""
    from usfm.study import run  # with its figures; no other mode draws any

    run.run_study(config, workdir)


def advise(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says of each task with which others to train it, from what a run of all recorded."""
    from usfm.study.advise import run_advise
    from usfm.study.describe import describe

    folder = open_folder(config, workdir)
    rows = training_rows(folder, open_splits(config, folder), config.data)
    counts = {task_id: len(of_task) for task_id, of_task in rows.items()}
    print(describe(run_advise(workdir, folder.tasks, counts)))


MODES = {
    "train": run_train,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "study": run_study,
    "advise": advise,
}


def _open_folder(
    config: ConfigDict, workdir: pathlib.Path, *, require_labels: bool = True
) -> Folder:
    """Reads data.root, in process 0 first, which alone tells all faults."""
    told = workdir if processes.is_first() else None
    return processes.in_turn(lambda: open_folder(config, told, require_labels=require_labels))


def _check_shared(workdir: pathlib.Path) -> None:
    """All processes must see what process 0 has just written into the workdir.

    Raises:
        UserError: in all of them.
    """
    processes.wait()
    last = processes.gather(goodput.read(workdir)[-1:])
    if others := [str(number) for number, of in enumerate(last) if of != last[0]]:
        raise UserError(
            f"process {', '.join(others)} of {len(last)} does not see what process 0 writes into "
            f"{workdir}: give a --workdir on a file system that all of them share"
        )


def _check_same(folder: Folder, splits: Splits) -> None:
    """All processes must have read the same rows, and split them alike.

    Raises:
        UserError: in all of them.
    """
    rows = [(task.id, row.key, row.content, splits.part(row)) for task in folder.tasks
            for row in folder.rows[task.id]]  # fmt: skip
    digests = processes.gather(hashlib.sha256(repr(rows).encode()).hexdigest())
    if others := [str(number) for number, of in enumerate(digests) if of != digests[0]]:
        raise UserError(
            f"process {', '.join(others)} of {len(digests)} read other rows than process 0: give "
            "all of them the same data.root and data.splits_file"
        )


def _floors(folder: Folder, splits: Splits, data: ConfigDict) -> dict[str, Trivial]:
    """The trivial predictors of all tasks that have training rows, fitted to them."""
    fitted = {}
    indices = training_rows(folder, splits, data)
    for task in folder.tasks:
        if indices[task.id].size:
            rows = [folder.rows[task.id][index] for index in indices[task.id]]
            fitted[task.id] = trivial.fit(folder, task, rows)
    return fitted


def _score(
    predictor: Predictor,
    folder: Folder,
    splits: Splits,
    rows: Mapping[str, Sequence[Row]],
    floors: Mapping[str, Trivial],
) -> tuple[Evaluation, list[Example]]:
    """Scores a predictor on rows, beside the trivial ones; and one example a task to show."""
    rows = {task_id: of_task for task_id, of_task in rows.items() if of_task}
    own = {task_id: processes.share(of_task) for task_id, of_task in rows.items()}
    shown: dict[str, tuple[Row, Answer]] = {}
    with jax.set_mesh(predictor.mesh):
        result = evaluate(
            _remember_first(predictor(folder, own), shown),
            folder,
            rows,
            trivial=floors,
            part_of=splits.part,
            group_of=splits.group,
        )
    tasks = {task.id: task for task in folder.tasks}
    # The first row of every task is of the first process.
    return result, [_example(folder, tasks[id], *shown[id]) for id in rows if id in shown]


def _remember_first(
    answers: Iterable[tuple[Row, Answer]], shown: dict[str, tuple[Row, Answer]]
) -> Iterator[tuple[Row, Answer]]:
    for row, answer in answers:
        shown.setdefault(row.task_id, (row, answer))
        yield row, answer


def _example(folder: Folder, task: Task, row: Row, answer: Answer) -> Example:
    image = read_image(folder.image_file(row))
    return Example(task, row.key, image, truth(folder, task, row), answer)


def _all_in_one(folder: Folder) -> Splits:
    """A split of a folder that was not trained on: everything is to be scored."""
    keys = [(row.task_id, row.key) for rows in folder.rows.values() for row in rows]
    contents = [row.content[:16] for rows in folder.rows.values() for row in rows]
    return Splits(dict.fromkeys(keys, "all"), dict(zip(keys, contents, strict=True)))


def _untrained(config: ConfigDict, folder: Folder) -> Predictor:
    """The model as training starts with it."""
    mesh = sharding.make_own_mesh(config.mesh)
    model = make_model(config, folder.tasks)
    params = sharding.build(lambda: model.init(jax.random.key(config.train.seed)), mesh)
    if (encoder := pretrained(config)) is not None:
        params = model.with_encoder(params, encoder)
    return make_predictor(config, programs_of(model, mesh), model.tasks, params, mesh)


def _trained(config: ConfigDict, workdir: pathlib.Path) -> Predictor:
    """The model of the newest checkpoint of a workdir, averaged where the run keeps averages."""
    mesh = sharding.make_own_mesh(config.mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        newest = checkpoints.latest()
        if newest is None:
            raise UserError(f"{workdir} holds no checkpoint: train first, or give its --workdir")
        model = make_model(config, tasks_from_meta(checkpoints.meta(newest)))
        placed = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
        parts = evaluated_parts(placed, config, model.layers)
        params = evaluated_params(**checkpoints.restore_parts(newest, parts))
    return make_predictor(config, programs_of(model, mesh), model.tasks, params, mesh)


def _check_tasks(known: Sequence[Task], folder: Folder) -> None:
    """Every task of the folder must be one the model was trained on, of the same form."""
    by_id = {task.id: task for task in known}
    for task in folder.tasks:
        if task.id not in by_id:
            raise UserError(
                f"{folder.place} has task '{task.id}', which the model was not trained on; choose "
                f"by --config.tasks among {', '.join(by_id)}"
            )
        model = by_id[task.id]
        if (model.type, model.size) != (task.type, task.size):
            raise UserError(
                f"task '{task.id}' is {task.type} of {task.size} in {folder.place}, but the model "
                f"was trained on {model.type} of {model.size}"
            )

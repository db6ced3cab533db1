"""What `--mode` chooses: each mode as one function of a config and a workdir."""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from usfm import config as usfm_config
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
from usfm.evaluation.selection import scored_tasks, value_of
from usfm.evaluation.submission import write_submission
from usfm.evaluation.table import text_table
from usfm.models.functional import Params
from usfm.tasks import Task
from usfm.tasks.plans import select
from usfm.training import sharding
from usfm.training.checkpoint import Checkpoints, tasks_from_meta
from usfm.training.lock import in_use
from usfm.training.program import make_model
from usfm.training.start import source_of
from usfm.training.state import evaluated_params, evaluated_parts
from usfm.training.train import train


def run_train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, then scores the model (and before that the untrained one, where asked)."""
    usfm_config.begin(config, workdir)
    with in_use(workdir):
        _train(config, workdir)


def _train(config: ConfigDict, workdir: pathlib.Path) -> None:
    folder = open_folder(config, workdir)
    splits = open_splits(config, folder, workdir)
    rows = rows_in(folder, splits, config.evaluate.part)
    before = workdir / "evaluation_before.json"
    if config.evaluate.before_training and any(rows.values()) and not before.exists():
        untrained, _ = _score(_untrained(config, folder), folder, splits, rows, {})
        write_atomically(before, json.dumps(untrained.report, indent=2).encode())
    train(config, workdir, folder, splits, score=_selection(config, folder, splits))
    if not config.evaluate.after_training:
        return
    if not any(rows.values()):
        say(f"part '{config.evaluate.part}' has no labelled row: not scored")
        return
    if gone := [str(root) for root in folder.roots if not root.exists()]:
        say(f"{', '.join(gone)} is gone: not scored; run --mode=evaluate when it is back")
        return
    run_evaluate(usfm_config.read(workdir / "config.json"), workdir)


def run_evaluate(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Scores a checkpoint: evaluation.json, evaluation_rows.csv, report.html, and a table."""
    usfm_config.check(config)
    trained = usfm_config.read(workdir / "config.json")
    asked, known = identities(config.data), identities(trained.data)
    if asked != known and asked & known:
        raise UserError(
            f"data.root={config.data.root} has rows that the model was trained on: give all of "
            f"{trained.data.root}, or nothing of it"
        )
    predictor = _trained(config, workdir)
    folder = open_folder(config, workdir)
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
            source = open_folder(trained, workdir)
            floors = _floors(source, open_splits(trained, source), trained.data)
    rows = rows_in(folder, splits, part)
    if not any(rows.values()):
        raise UserError(
            f"{config.data.root} has no labelled row in part '{part}'; set evaluate.part to "
            "another of val, test and all"
        )
    result, examples = _score(predictor, folder, splits, rows, floors)
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
        folder = folder_of_images(root, asked, cache_dir=cache_dir(config))
        write_faults(workdir / "left_out.csv", folder.skipped)
        say(
            f"{root} has no {DIRECTORY}/: its images are asked {', '.join(t.id for t in asked)}; "
            f"{len(folder.skipped)} files are left out, see {workdir}/left_out.csv"
        )
    else:
        folder = open_folder(config, workdir, require_labels=False)
        _check_tasks(predictor.tasks, folder)
    write_submission(predictor(folder, folder.rows), folder, workdir / "predictions")
    rows = sum(len(of_task) for of_task in folder.rows.values())
    print(f"{rows} rows answered: {workdir / 'predictions'}")


def run_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains what a study compares, and says which tasks to train together."""
    from usfm.study import run  # with its figures; no other mode draws any

    with in_use(workdir):
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
    shown: dict[str, tuple[Row, Answer]] = {}
    result = evaluate(
        _remember_first(predictor(folder, rows), shown),
        folder,
        rows,
        trivial=floors,
        part_of=splits.part,
        group_of=splits.group,
    )
    tasks = {task.id: task for task in folder.tasks}
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
    mesh = sharding.make_mesh(config.mesh)
    model = make_model(config, folder.tasks)
    params = sharding.build(lambda: model.init(jax.random.key(config.train.seed)), mesh)
    if (source := source_of(config, model.tasks)) is not None:
        params = source(model, params)
    return make_predictor(config, programs_of(model, mesh), model.tasks, params, mesh)


def _selection(
    config: ConfigDict, folder: Folder, splits: Splits
) -> Callable[[Params], float] | None:
    """Scores parameters by checkpoint.best_metric on part val; None where nothing is asked."""
    metric = config.checkpoint.best_metric
    if not metric:
        return None
    labelled = rows_in(folder, splits, "val")
    rows = {task_id: labelled[task_id] for task_id in scored_tasks(metric, folder.tasks)}
    if empty := [task_id for task_id, of_task in rows.items() if not of_task]:
        raise UserError(
            f"checkpoint.best_metric={metric!r} is of part val, where {', '.join(empty)} has no "
            "labelled row: name one task's, as TASK/METRIC, or give a larger data.val_fraction"
        )
    mesh = sharding.make_mesh(config.mesh)
    programs = programs_of(make_model(config, folder.tasks), mesh)

    def score(params: Params) -> float:
        predictor = make_predictor(config, programs, folder.tasks, params, mesh)
        result, _ = _score(predictor, folder, splits, rows, {})
        return value_of(metric, result.report["tasks"])

    return score


def _trained(config: ConfigDict, workdir: pathlib.Path) -> Predictor:
    """The model of a workdir's checkpoint, averaged where the run keeps averages."""
    mesh = sharding.make_mesh(config.mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint: train first, or give its --workdir")
        if config.evaluate.checkpoint == "best":
            step = checkpoints.best()
            if step is None:
                raise UserError(
                    f"{workdir} holds no checkpoint that was scored: train with "
                    "--config.checkpoint.best_metric, or set evaluate.checkpoint=latest"
                )
            say(f"the best checkpoint is that of step {step}")
        model = make_model(config, tasks_from_meta(checkpoints.meta(step)))
        placed = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
        parts = evaluated_parts(placed, config, model.layers)
        params = evaluated_params(**checkpoints.restore_parts(step, parts))
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

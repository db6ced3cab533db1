"""What `--mode` chooses: each mode as one function of a config and a workdir."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from usfm.evaluation.cases import choose
from usfm.evaluation.compare import compare, text_comparison
from usfm.evaluation.compare_page import write_comparison
from usfm.evaluation.evaluate import Evaluation, Trivial, evaluate, write
from usfm.evaluation.files import write_atomically
from usfm.evaluation.overlay import Example
from usfm.evaluation.predict import Predictor, make_predictor, programs_of
from usfm.evaluation.prediction import truth
from usfm.evaluation.report import BESIDE, write_report
from usfm.evaluation.runs import read_json, read_run
from usfm.evaluation.submission import write_submission
from usfm.evaluation.table import text_table
from usfm.tasks import Task
from usfm.tasks.plans import select
from usfm.training import sharding
from usfm.training.checkpoint import Checkpoints, tasks_from_meta
from usfm.training.program import make_model
from usfm.training.state import evaluated_params, evaluated_parts
from usfm.training.train import pretrained, train


def run_train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, then scores the model (and before that the untrained one, where asked)."""
    usfm_config.begin(config, workdir)
    folder = open_folder(config, workdir)
    splits = open_splits(config, folder, workdir)
    rows = rows_in(folder, splits, config.evaluate.part)
    before = workdir / "evaluation_before.json"
    if config.evaluate.before_training and any(rows.values()) and not before.exists():
        untrained = _score(_untrained(config, folder), folder, splits, rows, {})
        write_atomically(before, json.dumps(untrained.report, indent=2).encode())
    train(config, workdir, folder, splits)
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
    held = _held(workdir)
    result = _score(predictor, folder, splits, rows, floors)
    beside = _beside(workdir, held, result.report)
    write(result, workdir)
    examples = list(_examples(predictor, folder, rows, result))
    write_report(workdir, result.report, examples, beside=beside)
    print(text_table(result.report, beside))
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

    run.run_study(config, workdir)


def advise(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says of each task with which others to train it, from what a run of all recorded."""
    from usfm.study.advise import run_advise
    from usfm.study.describe import describe

    folder = open_folder(config, workdir)
    rows = training_rows(folder, open_splits(config, folder), config.data)
    counts = {task_id: len(of_task) for task_id, of_task in rows.items()}
    print(describe(run_advise(workdir, folder.tasks, counts)))


def run_compare(runs: Sequence[pathlib.Path], workdir: pathlib.Path) -> None:
    """Puts runs that were scored side by side: compare.html, a table. Needs no config."""
    comparison = compare([read_run(run) for run in runs])
    write_comparison(workdir / "compare.html", comparison)
    print(text_comparison(comparison))
    print(f"\nreport: {workdir / 'compare.html'}")


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
) -> Evaluation:
    """Scores a predictor on rows, beside the trivial ones."""
    rows = {task_id: of_task for task_id, of_task in rows.items() if of_task}
    return evaluate(
        predictor(folder, rows),
        folder,
        rows,
        trivial=floors,
        part_of=splits.part,
        group_of=splits.group,
    )


def _held(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The evaluations that a workdir holds: now, and those beside it."""
    paths = {name: workdir / f"evaluation_{name}.json" for name in BESIDE}
    paths["now"] = workdir / "evaluation.json"
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def _beside(
    workdir: pathlib.Path, held: Mapping[str, dict[str, Any]], report: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Keeps what `report` is to replace, if that says another thing; those on the same rows."""
    beside = {name: held[name] for name in BESIDE if name in held}
    if "now" in held and held["now"] != json.loads(json.dumps(report)):
        beside["previous"] = held["now"]
        kept = workdir / "evaluation_previous.json"
        write_atomically(kept, (workdir / "evaluation.json").read_bytes())
    return {name: one for name, one in beside.items() if one.get("parts") == report["parts"]}


def _examples(
    predictor: Predictor,
    folder: Folder,
    rows: Mapping[str, Sequence[Row]],
    result: Evaluation,
) -> Iterator[Example]:
    """The best, median and worst case of each task, asked again: no answer was kept."""
    tasks = {task.id: task for task in folder.tasks}
    by_key = {(row.task_id, row.key): row for of_task in rows.values() for row in of_task}
    chosen = choose(folder.tasks, result.rows)
    cases = [case for of_task in chosen.values() for case in of_task]
    asked = {id: [by_key[id, case.row_key] for case in of_task] for id, of_task in chosen.items()}
    for case, (row, answer) in zip(cases, predictor(folder, asked), strict=True):
        task = tasks[row.task_id]
        image = read_image(folder.image_file(row))
        yield Example(task, row.key, image, truth(folder, task, row), answer, case)


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
    if (encoder := pretrained(config)) is not None:
        params = model.with_encoder(params, encoder)
    return make_predictor(config, programs_of(model, mesh), model.tasks, params, mesh)


def _trained(config: ConfigDict, workdir: pathlib.Path) -> Predictor:
    """The model of the newest checkpoint of a workdir, averaged where the run keeps averages."""
    mesh = sharding.make_mesh(config.mesh)
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

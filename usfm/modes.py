"""What `--mode` chooses: each mode as one function of a config and a workdir."""

import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from usfm import config as usfm_config
from usfm.data.asked import LEFT_OUT, LeftOut, open_asked
from usfm.data.folder import Folder, Row
from usfm.data.image import read_image
from usfm.data.roots import are_there, identities
from usfm.data.source import open_folder, open_splits, rows_in, say, training_rows
from usfm.data.splits import Splits
from usfm.errors import UserError
from usfm.evaluation import trivial
from usfm.evaluation.answering import answer_all, check_tasks, open_answerable
from usfm.evaluation.evaluate import Evaluation, Trivial, evaluate, write
from usfm.evaluation.feature_files import WRITERS, one_row_an_image, write_index
from usfm.evaluation.files import write_atomically
from usfm.evaluation.overlay import Example
from usfm.evaluation.predict import Predictor, make_predictor, programs_of
from usfm.evaluation.prediction import Answer, truth
from usfm.evaluation.report import write_report
from usfm.evaluation.table import text_table
from usfm.restored import extractor_of, predictor_of, restore
from usfm.tasks import Task
from usfm.training import sharding
from usfm.training.program import make_model
from usfm.training.train import pretrained, train


def run_train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, then scores the model (and before that the untrained one, where asked)."""
    usfm_config.begin(config, workdir)
    folder = open_folder(config, workdir)
    splits = open_splits(config, folder, workdir)
    rows = rows_in(folder, splits, config.evaluate.part)
    before = workdir / "evaluation_before.json"
    if config.evaluate.before_training and any(rows.values()) and not before.exists():
        untrained, _ = _score(_untrained(config, folder), folder, splits, rows, {})
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
    check_tasks(predictor.tasks, folder)
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
    """Answers all that data.root asks, labelled or not: workdir/predictions/.

    data.root is an FM_UIA folder, or bare images, each of which is asked all chosen tasks (see
    asked.py). What cannot be read is told in left_out.csv, and the rest is answered.
    """
    usfm_config.check(config)
    predictor = _trained(config, workdir)
    folder = open_answerable(predictor.tasks, config, workdir)
    output_dir = workdir / "predictions"
    shutil.rmtree(output_dir, ignore_errors=True)  # answers to other rows are not to be among them
    overlays = config.predict.overlays
    print(answer_all(predictor, folder, output_dir, left_out=workdir, overlays=overlays))


def run_features(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes what the encoder says of each image of data.root, once: workdir/features/."""
    usfm_config.check(config)
    restored = restore(config, workdir, mesh=sharding.make_mesh(config.mesh))
    extractor = extractor_of(restored)
    folder = open_asked(config, restored.model.tasks, workdir)
    rows, output_dir = one_row_an_image(folder), workdir / "features"
    shutil.rmtree(output_dir, ignore_errors=True)
    left_out = LeftOut(workdir / LEFT_OUT, folder.skipped)
    write = WRITERS[config.features.format]
    done = list(write(extractor(folder, rows, left_out), len(rows), output_dir))
    write_index(done, output_dir)
    print(f"features of {len(done)} images, {left_out}: {output_dir}")


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
    "features": run_features,
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
    if (encoder := pretrained(config)) is not None:
        params = model.with_encoder(params, encoder)
    return make_predictor(config, programs_of(model, mesh), model.tasks, params, mesh)


def _trained(config: ConfigDict, workdir: pathlib.Path) -> Predictor:
    """The model of the newest checkpoint of a workdir, averaged where the run keeps averages."""
    return predictor_of(restore(config, workdir, mesh=sharding.make_mesh(config.mesh)))

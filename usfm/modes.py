"""What `--mode` chooses: each mode as one function of a config and a workdir."""

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from usfm import checks, processes
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
from usfm.evaluation.cases import choose
from usfm.evaluation.compare import compare, text_comparison
from usfm.evaluation.compare_page import write_comparison
from usfm.evaluation.evaluate import Evaluation, Trivial, evaluate, write
from usfm.evaluation.feature_files import WRITERS, one_row_an_image, write_index
from usfm.evaluation.files import write_atomically
from usfm.evaluation.overlay import Example
from usfm.evaluation.predict import Predictor, make_predictor, programs_of
from usfm.evaluation.prediction import truth
from usfm.evaluation.report import BESIDE, write_report
from usfm.evaluation.runs import read_json, read_run
from usfm.evaluation.selection import scored_tasks, value_of
from usfm.evaluation.table import text_table
from usfm.models.functional import Params
from usfm.restored import extractor_of, predictor_of, restore
from usfm.training import goodput, sharding
from usfm.training.lock import in_use
from usfm.training.program import make_model
from usfm.training.start import source_of
from usfm.training.train import train


def run_train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, then scores the model (and before that the untrained one, where asked)."""
    checks.begin(config, workdir)
    with contextlib.ExitStack() as stack:
        processes.in_turn(lambda: stack.enter_context(in_use(workdir)))
        _train(config, workdir)


def _train(config: ConfigDict, workdir: pathlib.Path) -> None:
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
        untrained = _score(_untrained(config, folder), folder, splits, rows, {})
        goodput.note(workdir, "evaluated")
        if processes.is_first():
            write_atomically(before, json.dumps(untrained.report, indent=2).encode())
    train(config, workdir, folder, splits, score=_selection(config, folder, splits))
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
    """Scores a checkpoint: evaluation.json, evaluation_rows.csv, report.html, and a table."""
    checks.check(config)
    trained = usfm_config.read(workdir / "config.json")
    asked, known = identities(config.data), identities(trained.data)
    if asked != known and asked & known:
        raise UserError(
            f"data.root={config.data.root} has rows that the model was trained on: give all of "
            f"{trained.data.root}, or nothing of it"
        )
    predictor = _trained(config, workdir)
    folder = _open_folder(config, workdir)
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
            source = _open_folder(trained, workdir)
            floors = _floors(source, open_splits(trained, source), trained.data)
    rows = rows_in(folder, splits, part)
    if not any(rows.values()):
        raise UserError(
            f"{config.data.root} has no labelled row in part '{part}'; set evaluate.part to "
            "another of val, test and all"
        )
    held = _held(workdir)
    result = _score(predictor, folder, splits, rows, floors)
    if not processes.is_first():
        return
    beside = _beside(workdir, held, result.report)
    write(result, workdir)
    with jax.set_mesh(predictor.mesh):
        examples = list(_examples(predictor, folder, rows, result))
    write_report(workdir, result.report, examples, beside=beside)
    print(text_table(result.report, beside))
    print(f"\nreport: {workdir / 'report.html'}")


def run_predict(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Answers all that data.root asks, labelled or not: workdir/predictions/.

    data.root is an FM_UIA folder, or bare images, each of which is asked all chosen tasks (see
    asked.py). What cannot be read is told in left_out.csv, and the rest is answered.
    """
    checks.check(config)
    predictor = _trained(config, workdir)
    folder = processes.in_turn(lambda: open_answerable(predictor.tasks, config, workdir))
    output_dir = workdir / "predictions"
    if processes.is_first():
        # Answers to other rows are not to be among them.
        shutil.rmtree(output_dir, ignore_errors=True)
    processes.wait()
    overlays = config.predict.overlays
    print(answer_all(predictor, folder, output_dir, left_out=workdir, overlays=overlays))


def run_features(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes what the encoder says of each image of data.root, once: workdir/features/."""
    checks.check(config)
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
    "features": run_features,
    "study": run_study,
    "advise": advise,
}


def _open_folder(config: ConfigDict, workdir: pathlib.Path) -> Folder:
    """Reads data.root, in process 0 first, which alone tells all faults."""
    told = workdir if processes.is_first() else None
    return processes.in_turn(lambda: open_folder(config, told))


def _check_shared(workdir: pathlib.Path) -> None:
    """All processes must see what process 0 has just written into the workdir.

    Raises:
        UserError: in all of them.
    """
    processes.wait()
    if others := processes.unlike_first(goodput.read(workdir)[-1:]):
        raise UserError(
            f"process {others} does not see what process 0 writes into {workdir}: give a --workdir "
            "on a file system that all of them share"
        )


def _check_same(folder: Folder, splits: Splits) -> None:
    """All processes must have read the same rows, and split them alike.

    Raises:
        UserError: in all of them.
    """
    rows = [(task.id, row.key, row.content, splits.part(row)) for task in folder.tasks
            for row in folder.rows[task.id]]  # fmt: skip
    if others := processes.unlike_first(hashlib.sha256(repr(rows).encode()).hexdigest()):
        raise UserError(
            f"process {others} read other rows than process 0: give all of them the same data.root "
            "and data.splits_file"
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
) -> Evaluation:
    """Scores a predictor on rows, beside the trivial ones."""
    rows = {task_id: of_task for task_id, of_task in rows.items() if of_task}
    own = {task_id: processes.share(of_task) for task_id, of_task in rows.items()}
    with jax.set_mesh(predictor.mesh):
        return evaluate(
            predictor(folder, own),
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
    mesh = sharding.make_own_mesh(config.mesh)
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
    mesh = sharding.make_own_mesh(config.mesh)
    programs = programs_of(make_model(config, folder.tasks), mesh)

    def score(params: Params) -> float:
        own = sharding.brought(params, mesh)
        predictor = make_predictor(config, programs, folder.tasks, own, mesh)
        result = _score(predictor, folder, splits, rows, {})
        return processes.agreed(value_of(metric, result.report["tasks"]))

    return score


def _trained(config: ConfigDict, workdir: pathlib.Path) -> Predictor:
    """The model of a workdir's checkpoint, averaged where the run keeps averages."""
    return predictor_of(restore(config, workdir, mesh=sharding.make_own_mesh(config.mesh)))

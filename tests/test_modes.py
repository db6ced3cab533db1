"""What evaluate and predict make of a trained workdir."""

import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from usfm import config as usfm_config
from usfm import modes
from usfm.data.folder import read_folder
from usfm.data.phantoms import write_folder
from usfm.data.source import open_splits, rows_in
from usfm.errors import UserError
from usfm.evaluation.evaluate import evaluate
from usfm.evaluation.metrics import METRICS
from usfm.evaluation.submission import read_submission
from usfm.models.functional import path_name
from usfm.training.checkpoint import Checkpoints

# Two tasks of one type compile one program; each other type would cost one more.
TWO = "breast_2cls,lung_2cls"


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the trained workdir, with its newest checkpoint."""
    copy = tmp_path / "workdir"
    with Checkpoints(trained / "checkpoints") as checkpoints:
        *old, _ = checkpoints.steps()
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns(*map(str, old)))
    for name in ("evaluation.json", "evaluation_rows.csv", "report.html"):
        (copy / name).unlink()
    return copy


def config_of(workdir, **fields):
    return usfm_config.of_run(workdir, fields)


def report_of(workdir):
    return json.loads((workdir / "evaluation.json").read_text())


def folder_and_splits(workdir):
    config = config_of(workdir)
    folder = read_folder(config.data.root, tasks=config.tasks)
    return folder, open_splits(config, folder)


def close(ours, theirs):
    """Equal but for rounding, at any depth."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(close(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    if isinstance(ours, float):
        return ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    return ours == theirs


def test_a_finished_run_is_scored_on_all_tasks_before_and_after(trained):
    report = report_of(trained)
    folder, splits = folder_and_splits(trained)
    rows = rows_in(folder, splits, "val")
    assert list(report["tasks"]) == [task.id for task in folder.tasks]
    for task in folder.tasks:
        for scores in (report["tasks"][task.id], report["trivial"][task.id]):
            assert scores["n"] == len(rows[task.id]) > 0
            assert {*METRICS[task.type], "n", "undefined"} <= set(scores)
            for metric in METRICS[task.type]:
                assert (scores[metric] is None) == (metric in scores["undefined"])
        for metric, interval in report["tasks"][task.id]["intervals"].items():
            value = report["tasks"][task.id][metric]
            assert interval is None or interval[0] <= interval[1]
            assert value is not None or interval is None
    assert report["missing"] == []
    assert report["parts"] == {"val": sum(map(len, rows.values()))}
    assert report["skipped_rows"] == 0

    before = json.loads((trained / "evaluation_before.json").read_text())
    assert before["tasks"].keys() == report["tasks"].keys()
    assert before["tasks"] != report["tasks"]
    assert before["trivial"] == {}
    page = (trained / "report.html").read_text()
    assert "<svg" in page
    for task in folder.tasks:
        cases = re.findall(f'<figure data-task="{task.id}".*?<b>(\\w+): ', page)
        assert cases == ["best", "median", "worst"]


def test_every_score_of_a_row_is_in_the_csv(trained):
    folder, splits = folder_and_splits(trained)
    with (trained / "evaluation_rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    scored = {(line["task_id"], line["row_key"]) for line in lines}
    rows = [row for of_task in rows_in(folder, splits, "val").values() for row in of_task]
    assert scored == {(row.task_id, row.key) for row in rows}
    assert {line["part"] for line in lines} == {"val"}
    groups = {(row.task_id, row.key): splits.group(row) for row in rows}
    assert all(line["group"] == groups[line["task_id"], line["row_key"]] for line in lines)


def test_evaluate_finds_what_training_ended_with_and_the_submission_says_the_same(
    workdir, trained, capsys
):
    config = config_of(workdir)
    modes.run_evaluate(config, workdir)
    assert close(report_of(workdir)["tasks"], report_of(trained)["tasks"])
    assert report_of(workdir)["trivial"] == report_of(trained)["trivial"]
    table = capsys.readouterr().out
    assert all(task_id in table for task_id in report_of(trained)["tasks"])
    assert f"report: {workdir}/report.html" in table

    modes.run_predict(config, workdir)
    assert "96 rows answered" in capsys.readouterr().out
    folder, splits = folder_and_splits(workdir)
    rows = rows_in(folder, splits, "val")
    asked = [row for of_task in rows.values() for row in of_task]
    answers = read_submission(folder, workdir / "predictions", asked)
    again = evaluate(
        answers, folder, rows, trivial={}, part_of=splits.part, group_of=splits.group
    ).report
    assert again["missing"] == []
    tasks = report_of(workdir)["tasks"]
    for task in folder.tasks:
        # The submission's form has no place for a confidence.
        for metric in set(METRICS[task.type]) - {"average_precision"}:
            assert close(again["tasks"][task.id][metric], tasks[task.id][metric])


def test_scores_are_those_of_the_averaged_parameters(workdir, monkeypatch):
    config = config_of(workdir, tasks=TWO)
    modes.run_evaluate(config, workdir)
    before = report_of(workdir)
    assert list(before["tasks"]) == TWO.split(",")
    restore = Checkpoints.restore_parts

    def changed(checkpoints, step, abstract):
        parts = restore(checkpoints, step, abstract)
        head = parts["ema"]["heads"]["classification"]
        head["bias"] = head["bias"].at[1].add(jax.numpy.array([50.0, -50.0]))
        return parts

    monkeypatch.setattr(Checkpoints, "restore_parts", changed)
    modes.run_evaluate(config, workdir)
    after = report_of(workdir)
    assert close(after["tasks"]["breast_2cls"], before["tasks"]["breast_2cls"])
    folder, splits = folder_and_splits(workdir)
    rows = rows_in(folder, splits, "val")["lung_2cls"]
    first = np.mean([row.label == 0 for row in rows])
    assert after["tasks"]["lung_2cls"]["accuracy"] == pytest.approx(first)


def test_an_evaluation_that_another_replaces_is_kept_and_shown_beside_it(tmp_path):
    first, second = ({"parts": {"val": 3}, "tasks": {"a": {"dsc": v}}} for v in (0.1, 0.2))
    of_test = second | {"parts": {"test": 3}}

    def replaced_by(report):
        beside = modes._beside(tmp_path, modes._held(tmp_path), report)
        (tmp_path / "evaluation.json").write_text(json.dumps(report))
        return beside

    assert replaced_by(first) == {}
    assert replaced_by(second) == {"previous": first}
    assert replaced_by(second) == {"previous": first}  # nothing new was said
    assert replaced_by(of_test) == {}  # of other rows
    assert json.loads((tmp_path / "evaluation_previous.json").read_text()) == second


def test_what_is_scored_is_what_the_newest_checkpoint_averaged(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        arrays = checkpoints.arrays(checkpoints.steps()[-1])

    def scored(**fields):
        params = modes._trained(config_of(workdir, **fields), workdir).params
        return {path_name(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip

    averages, last = scored(), scored(**{"train.ema": 0.0})
    assert averages.keys() == last.keys()
    for name in averages:
        np.testing.assert_array_equal(averages[name], arrays[f"ema/{name}"])
        np.testing.assert_array_equal(last[name], arrays[f"params/{name}"])
    kernel = "encoder/blocks/mlp/up/kernel"
    assert (averages[kernel] != last[kernel]).any()


def test_a_run_begun_before_a_field_existed_is_read_or_refused_in_one_line(workdir):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    # Which change nothing of what was learned, or nothing any more.
    del config["predict"], config["features"]["task"], config["optimizer"]["name"]
    del config["multitask"]["options"]["dwa"]
    path.write_text(json.dumps(config))
    assert config_of(workdir).predict.scales == [1.0]
    assert config_of(workdir).optimizer.name == "adamw"
    assert config_of(workdir).multitask.options.dwa.window == 100
    assert config_of(workdir).features.to_dict() == {"task": "", "format": "npz"}
    del config["train"]["ema"], config["model"]["dtype"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json lacks model\.dtype, train\.ema: [^\n]*$"):
        config_of(workdir)


def test_another_folder_without_labels_is_answered(workdir, tmp_path, capsys):
    root = tmp_path / "new"
    write_folder(root, tasks=["lung_2cls"], rows=5, seed=9)
    path = root / "csv_files/lung_2cls.csv"
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in lines[0] if name != "mask"])
        writer.writeheader()
        writer.writerows({k: v for k, v in line.items() if k != "mask"} for line in lines)
    splits = (workdir / "splits.csv").read_text()

    modes.run_predict(config_of(workdir, **{"data.root": str(root)}), workdir)
    assert "5 rows answered" in capsys.readouterr().out
    (file,) = (workdir / "predictions").iterdir()
    entries = json.loads(file.read_text())
    assert [entry["image_path"] for entry in entries] == [line["image_path"] for line in lines]
    assert {entry["task_id"] for entry in entries} == {"lung_2cls"}
    assert all(sum(entry["predicted_probs"]) == pytest.approx(1) for entry in entries)
    assert (workdir / "splits.csv").read_text() == splits


def test_bare_images_are_answered_and_what_is_none_is_left_out(workdir, tmp_path, capsys):
    root = tmp_path / "new"
    (root / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / name)
    (root / "README").write_text("no image")
    modes.run_predict(config_of(workdir, tasks="lung_2cls", **{"data.root": str(root)}), workdir)
    told = capsys.readouterr()
    assert "2 rows answered, 1 left out (see " in told.out
    assert "its images are asked lung_2cls" in told.err
    (file,) = (workdir / "predictions").iterdir()
    answered = [(entry["task_id"], entry["image_path"]) for entry in json.loads(file.read_text())]
    assert answered == [("lung_2cls", "../b.png"), ("lung_2cls", "../deep/a.png")]
    assert "README" in (workdir / "left_out.csv").read_text()


def test_what_is_damaged_is_named_and_the_rest_is_answered_and_drawn(
    workdir, phantoms, tmp_path, capsys
):
    root = tmp_path / "new"
    shutil.copytree(phantoms, root)
    (root / "Classification/lung_2cls/0003.png").write_bytes(b"no image")
    (root / "Classification/lung_2cls/0005.png").unlink()
    for file in (root / "Classification/breast_2cls").iterdir():  # all of a task
        file.write_bytes(b"")
    (workdir / "predictions").mkdir()
    (workdir / "predictions/old.png").touch()  # an answer to another folder
    fields = {"data.root": str(root), "tasks": TWO, "predict.overlays": True}
    modes.run_predict(config_of(workdir, **fields), workdir)
    assert "10 rows answered, 14 left out (see " in capsys.readouterr().out
    (entries,) = (json.loads(f.read_text()) for f in (workdir / "predictions").glob("*.*"))
    answered = {entry["image_path"].rpartition("/")[2] for entry in entries}
    assert answered == {f"{n:04}.png" for n in range(12)} - {"0003.png", "0005.png"}
    told = (workdir / "left_out.csv").read_text()
    assert "lung_2cls/0003.png is not an image" in told
    assert "no file Classification/lung_2cls/0005.png" in told
    drawn = workdir / "predictions/overlays/lung_2cls/Classification/lung_2cls"
    assert {path.name for path in drawn.iterdir()} == {f"{name}.jpg" for name in answered}


def test_features_are_of_every_image_once(workdir, capsys):
    modes.run_features(config_of(workdir, **{"features.format": "npz"}), workdir)
    folder, _ = folder_and_splits(workdir)
    rows = [row for of_task in folder.rows.values() for row in of_task]
    files = {folder.image_file(row) for row in rows}
    assert f"features of {len(files)} images, none left out" in capsys.readouterr().out
    with (workdir / "features/index.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(files)
    with np.load(workdir / "features/Classification/lung_2cls/0003.png.npz") as first:
        dense, cls = first["dense"], first["cls"]
        assert (dense.shape, cls.shape) == ((2, 2, 192), (192,))
    config = config_of(workdir, **{"features.task": "lungs"})
    with pytest.raises(UserError, match=r"features\.task: the model has no task 'lungs'; did you"):
        modes.run_features(config, workdir)


def test_another_folder_is_scored_whole_beside_what_training_knew(workdir, tmp_path, capsys):
    root = tmp_path / "new"
    write_folder(root, tasks=["lung_2cls"], rows=5, seed=9)
    modes.run_evaluate(config_of(workdir, **{"data.root": str(root)}), workdir)
    report = report_of(workdir)
    assert report["tasks"].keys() == report["trivial"].keys() == {"lung_2cls"}
    assert report["tasks"]["lung_2cls"]["n"] == 5
    assert report["parts"] == {"all": 5}
    folder, splits = folder_and_splits(workdir)
    labels = [row.label for row in rows_in(folder, splits, "train")["lung_2cls"]]
    asked = [row.label for row in read_folder(root).rows["lung_2cls"]]
    common = np.bincount(np.array(labels)).argmax()
    assert report["trivial"]["lung_2cls"]["accuracy"] == np.mean(np.array(asked) == common)
    assert "before" not in capsys.readouterr().out


def test_the_training_folder_by_another_name_is_still_that_folder(workdir, phantoms, tmp_path):
    (tmp_path / "link").symlink_to(phantoms)
    config = config_of(workdir, tasks=TWO, **{"data.root": str(tmp_path / "link")})
    modes.run_evaluate(config, workdir)
    assert report_of(workdir)["parts"].keys() == {"val"}


def test_a_task_the_model_does_not_know_is_refused(workdir, tmp_path):
    root = tmp_path / "new"
    write_folder(root, tasks=["lung_2cls", "liver_lesion_2cls"], rows=5)
    config = config_of(workdir, **{"data.root": str(root)})
    message = "has task 'liver_lesion_2cls', which the model was not trained on; choose .*lung_2cls"
    for mode in (modes.run_evaluate, modes.run_predict):
        with pytest.raises(UserError, match=message):
            mode(config, workdir)


def test_a_part_without_rows_is_refused(workdir):
    config = config_of(workdir, tasks=TWO, **{"evaluate.part": "test"})
    with pytest.raises(UserError, match=r"no labelled row in part 'test'; set evaluate\.part"):
        modes.run_evaluate(config, workdir)


def test_rows_that_are_passed_over_are_counted(workdir, phantoms, tmp_path, capsys):
    root = tmp_path / "new"
    shutil.copytree(phantoms, root)
    (root / "Classification/lung_2cls/0003.png").write_bytes(b"no image")
    fields = {"data.root": str(root), "data.on_bad_row": "skip", "tasks": TWO}
    modes.run_evaluate(config_of(workdir, **fields), workdir)
    assert report_of(workdir)["skipped_rows"] == 1
    assert report_of(workdir)["parts"] == {"all": 23}
    assert f"1 fault in {root}, rows left out: see" in capsys.readouterr().err


def test_a_workdir_without_a_checkpoint_is_refused(workdir):
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint: train first"):
        modes.run_evaluate(config_of(workdir), workdir)
    assert not (workdir / "checkpoints").exists()


def test_training_on_all_rows_leaves_none_to_score(make_config, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(modes, "train", lambda *arguments, score: trained.append(arguments))
    fields = {"data.val_fraction": 0.0, "evaluate.before_training": True}
    modes.run_train(make_config(**fields), tmp_path)
    assert len(trained) == 1
    assert "part 'val' has no labelled row: not scored" in capsys.readouterr().err


def test_advice_of_a_short_run_is_that_it_is_too_short(workdir, capsys):
    modes.advise(config_of(workdir), workdir)
    text = capsys.readouterr().out
    folder, _ = folder_and_splits(workdir)
    for task in folder.tasks:
        (line,) = (line for line in text.splitlines() if line.startswith(task.id))
        assert "not enough evidence" in line


def test_a_run_goes_on_only_with_its_own_config(workdir):
    config = config_of(workdir, **{"optimizer.learning_rate": 7.0})
    with pytest.raises(UserError, match=r"learning_rate: 0\.002 before, 7\.0 now"):
        modes.run_train(config, workdir)


def test_a_part_of_what_was_trained_on_is_not_scored_as_if_it_were_new(tmp_path, make_config):
    config = make_config(**{"data.root": f"{tmp_path / 'a'},{tmp_path / 'b'}"})
    usfm_config.write(config, tmp_path / "config.json")
    config.data.root = str(tmp_path / "b")
    with pytest.raises(
        UserError, match=r"has rows that the model was trained on: give all of .*a,"
    ):
        modes.run_evaluate(config, tmp_path)

import csv
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

from space.errors import InputError
from space.predictor import Predictor
from tests.clips import write_clip
from tests.conftest import ROOT
from tests.dicom import write_dicom
from tests.fits import weights
from tests.images import speckle, write_table
from training import predict
from training.evaluate import with_pixels
from training.groups import with_groups
from training.predictions import Predictions
from training.sources import load_data

NO_MODEL = "found no image classifier there"  # what is told where all else is in order


def rows_of(file):
    with open(file, newline="") as table:
        return list(csv.DictReader(table))


def test_one_row_for_every_input_in_input_order(small_model, small_phantom, tmp_path, capsys):
    images = sorted(str(path) for path in (small_phantom / "images").iterdir())[:40]
    (tmp_path / "text.png").write_text("no image")
    given = [*images[::-1], str(tmp_path / "text.png"), images[0]]
    predict.main([str(small_model), *given, "--output", str(tmp_path / "out.csv")])
    rows = rows_of(tmp_path / "out.csv")
    assert list(rows[0]) == (
        ["path", "group", "prediction", "probability_normal", "probability_sick", "threshold", "abstained", "error"]
    )
    assert [row["path"] for row in rows] == given
    broken = rows.pop(40)
    assert broken["error"].startswith("it is no image")
    assert (broken["prediction"], broken["probability_sick"], broken["abstained"]) == ("", "", "True")
    assert sum(row["abstained"] == "True" for row in rows) <= 4
    for row in rows:
        called = "sick" if float(row["probability_sick"]) >= float(row["threshold"]) else "normal"
        assert row["prediction"] == ("" if row["abstained"] == "True" else called)
        assert row["error"] == ""
    assert rows[0]["probability_sick"] != rows[-1]["probability_sick"]
    assert "42 images" in capsys.readouterr().out


def test_probabilities_are_those_of_the_evaluation(small_model, small_phantom, tmp_path):
    evaluated = pd.read_csv(small_model / "eval" / "test.csv")
    files = [str(small_phantom / path) for path in evaluated["path"]]
    predict.main([str(small_model), *files, "--output", str(tmp_path / "out.csv")])
    predicted = pd.read_csv(tmp_path / "out.csv")
    assert np.allclose(predicted["probability_sick"], evaluated["probability_sick"], atol=2e-6)
    assert (predicted["prediction"] == evaluated["prediction"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png: no such file or folder"),
        (["EMPTY"], "found no images"),
        (["EMPTY/*.png"], "no file has such a name$"),
        ([], "the following arguments are required: PATH"),
        (["CLIP", "--output", "out.txt"], "out.txt: expected a name that ends in .csv, .parquet, .jsonl"),
        (["CLIP", "--output", "."], "--output .: expected a name that ends in .csv"),
        (["CLIP", "--output", "EMPTY", "--shard", "1/2"], "expected a name that ends in .csv"),
        (["CLIP", "--resume", "--overwrite"], "--overwrite: not allowed with argument --resume"),
        (["CLIP", "--saliency", "CLIP"], "--saliency .*clip.mp4: is no folder; choose another"),
        (["CLIP", "--shard", "3/2"], "--shard 3/2: expected i/n"),
        (["CLIP", "--runtime", "onnx"], "found no model.onnx; make it with chest-opacity export"),
        (["CLIP", "--precision", "int8"], "torch in int8: there is no such mode"),
    ],
)
def test_bad_input_is_refused_and_no_file_is_left(small_model, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    clip = str(write_clip(tmp_path / "clip.mp4", 3))
    arguments = [each.replace("EMPTY", str(tmp_path / "empty")).replace("CLIP", clip) for each in arguments]
    with pytest.raises(InputError, match=message):
        predict.main([str(small_model), "--output", str(tmp_path / "out.csv"), *arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "empty"]


def test_an_existing_file_is_replaced_only_when_that_is_said(small_model, small_phantom, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    command = [str(small_model), str(next((small_phantom / "images").iterdir())), "--output", str(output)]
    with pytest.raises(InputError, match="out.csv exists"):
        predict.main(command)
    assert output.read_text() == "precious"
    predict.main([*command, "--overwrite"])
    assert len(rows_of(output)) == 1


def test_a_folder_that_cannot_be_written_is_one_line(small_model, small_phantom, tmp_path):
    (tmp_path / "file").write_text("")
    image = str(next((small_phantom / "images").iterdir()))
    with pytest.raises(InputError, match="cannot write"):
        predict.main([str(small_model), image, "--output", str(tmp_path / "file" / "out.csv")])


def test_a_folder_of_the_name_is_no_complete_output(small_model, small_phantom, tmp_path):
    image = str(next((small_phantom / "images").iterdir()))
    with pytest.raises(InputError, match="is a folder; choose another --output"):
        (tmp_path / "out.csv").mkdir()
        predict.main([str(small_model), image, "--output", str(tmp_path / "out.csv"), "--resume"])


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(small_model, small_phantom, tmp_path):
    image = str(next((small_phantom / "images").iterdir()))
    command = [str(small_model), *[image] * 20, "--output", str(tmp_path / "out.csv")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(InputError, match="cannot write .*out.csv"):
            predict.main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    predict.main([*command, "--resume"])
    assert len(rows_of(tmp_path / "out.csv")) == 20


def test_a_run_goes_on_only_with_the_same_weights(small_model, small_phantom, tmp_path, monkeypatch):
    files = sorted(str(path) for path in (small_phantom / "images").iterdir())[:3]
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    command = [str(model), *files, "--output", str(tmp_path / "out.csv")]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 1, KeyboardInterrupt)
        predict.main(command)
    stopped = (model / "model.safetensors").read_bytes()
    other = {name: value + 1 for name, value in weights(model).items()}
    save_file(other, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="the stopped run has files of the model"):
        predict.main([*command, "--resume"])
    (model / "model.safetensors").write_bytes(stopped)
    predict.main([*command, "--resume"])
    assert [row["path"] for row in rows_of(tmp_path / "out.csv")] == files


def test_nothing_readable_at_all_ends_with_an_error_but_keeps_the_reasons(small_model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="none of the images could be read"):
        predict.main([str(small_model), str(tmp_path / "text.png"), "--output", str(tmp_path / "out.csv")])
    assert rows_of(tmp_path / "out.csv")[0]["error"]


# Runs the verb in children of its own, which it stops by a signal when so many rows are on disk.
STOPPED = """
import json, os, signal, sys, time
from pathlib import Path
from training import cli, predict

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored by what they start in the background
command, stops = json.loads(sys.argv[1])
output = Path(command[command.index("--output") + 1])
rows = output.with_name(f".{output.name}.unfinished")

for name, number in stops:
    child = os.fork()
    if child == 0:
        cli.run(predict.main, command)
    while not rows.exists() or rows.read_bytes().count(b"\\n") <= number:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.001)
    os.kill(child, getattr(signal, name))
    os.waitpid(child, 0)
    print(name, rows.read_bytes().count(b"\\n") - 1, output.exists(), flush=True)
cli.run(predict.main, command)
"""


def test_a_run_that_was_stopped_anywhere_goes_on_without_double_or_missing_rows(small_model, small_phantom, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    twice = str(min((small_phantom / "images").iterdir()))
    given = [str(small_phantom), str(tmp_path / "text.png"), twice]
    predict.main([str(small_model), *given, "--output", str(tmp_path / "whole.parquet")])
    output = tmp_path / "out.parquet"
    at = [int(first + np.random.default_rng().integers(15)) for first in (1, 25, 50, 75)]
    stops = list(zip(["SIGKILL", "SIGKILL", "SIGINT", "SIGKILL"], at, strict=True))
    command = [str(small_model), *given, "--output", str(output), "--resume"]
    told = subprocess.run(
        [sys.executable, "-c", STOPPED, json.dumps([command, stops])],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, (at, told.stderr)
    lines = told.stdout.splitlines()
    assert [line.split()[::2] for line in lines if line.startswith("SIGKILL")][:2] == [["SIGKILL", "False"]] * 2, at
    stopped = next(line for line in lines if "rows so far" in line)
    assert stopped.endswith(f"are in {output}; the same command with --resume goes on")
    whole, resumed = pd.read_parquet(tmp_path / "whole.parquet"), pd.read_parquet(output)
    assert len(whole) == 124 + 2
    pd.testing.assert_frame_equal(whole, resumed, atol=2e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "text.png", "whole.parquet"]


def stop_after(monkeypatch, number, error):
    """The next run is stopped by an error when it has written so many rows."""
    add = predict.Predictions.add

    def counted(rows, row):
        if rows.done == number:
            raise error
        add(rows, row)

    monkeypatch.setattr(predict.Predictions, "add", counted)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ctrl_c_leaves_a_file_that_can_be_read_and_gone_on_with(
    small_model, small_phantom, tmp_path, capsys, monkeypatch, suffix
):
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda file: pd.read_json(file, lines=True)}[
        suffix
    ]
    files = sorted(str(path) for path in (small_phantom / "images").iterdir())[:20]
    output = tmp_path / f"out.{suffix}"
    command = [str(small_model), *files, "--output", str(output)]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 11, KeyboardInterrupt)
        predict.main(command)
    assert read(output)["path"].tolist() == files[:11]
    with pytest.raises(InputError, match="a stopped run is there; go on with it by --resume"):
        predict.main(command)
    with pytest.raises(InputError, match="the stopped run has precision float32 where this one has bf16"):
        predict.main([*command, "--resume", "--precision", "bf16"])
    with pytest.raises(
        InputError, match=f"row 1 of the stopped run is {files[0]} where the inputs now have {files[1]}"
    ):
        predict.main([command[0], *command[2:], "--resume"])
    predict.main([*command, "--resume"])
    rows = read(output)
    assert rows["path"].tolist() == files
    assert rows["probability_sick"].between(0, 1).all()
    assert rows["abstained"].dtype == bool
    predict.main([*command, "--resume"])
    assert "is complete" in capsys.readouterr().out


def test_parts_join_to_all_rows_with_one_line_of_names(small_model, small_phantom, tmp_path, monkeypatch):
    files = sorted(str(path) for path in (small_phantom / "images").iterdir())[:7]
    command = [str(small_model), *files, "--output", str(tmp_path / "out.csv")]
    predict.main([*command, "--shard", "1/3", "--saliency", str(tmp_path / "overlays")])
    assert [path.name[:6] for path in sorted((tmp_path / "overlays").iterdir())] == ["000001", "000004", "000007"]
    shutil.rmtree(tmp_path / "overlays")
    predict.main([*command, "--shard", "2/3"])
    monkeypatch.setenv("RANK", "2")  # as accelerate and torchrun tell the third process of three
    monkeypatch.setenv("WORLD_SIZE", "3")
    predict.main(command)
    with pytest.raises(InputError, match="- is one list of which each process would read a part"):
        predict.main([command[0], "-", *command[-2:]])
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what `accelerate launch --num_processes 2` sets on a CPU
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match="several processes were asked for but accelerate started one"):
        predict.main(command)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"out-0000{n}-of-00003.csv" for n in (1, 2, 3)]
    (tmp_path / "joined.csv").write_text("".join(part.read_text() for part in parts))
    rows = rows_of(tmp_path / "joined.csv")
    assert sorted(row["path"] for row in rows) == files
    assert [row["path"] for row in rows][:3] == files[::3]


def test_overlays_are_named_by_row_and_are_the_ones_of_the_page(small_model, small_phantom, tmp_path):
    files = sorted(str(path) for path in (small_phantom / "images").iterdir())[:3]
    clip, broken = write_clip(tmp_path / "clip.mp4", 9), tmp_path / "text.png"
    broken.write_text("no image")
    output, overlays = tmp_path / "out.csv", tmp_path / "overlays"
    given = [files[0], str(broken), str(clip), *files[1:]]
    predict.main([str(small_model), *given, "--output", str(output), "--saliency", str(overlays)])
    stems = [os.path.basename(file).removesuffix(".png") for file in files]
    assert sorted(path.name for path in overlays.iterdir()) == (
        [f"000001_{stems[0]}.png", "000003_clip.png", f"000004_{stems[1]}.png", f"000005_{stems[2]}.png"]
    )
    predictor = Predictor(small_model)
    image = Image.open(files[0]).convert("RGB")
    expected = predict.overlay(image, predictor.answer([image], predictor.methods[0])[0].saliency)
    found = np.asarray(Image.open(overlays / f"000001_{stems[0]}.png"), float)
    assert np.abs(found - np.asarray(expected)).max() <= 2


def test_overlays_are_not_written_among_the_images_where_they_would_be_predicted_too(small_model, tmp_path):
    (tmp_path / "scans" / "1").mkdir(parents=True)
    Image.new("L", (40, 30), 90).save(tmp_path / "scans" / "1" / "1.png")
    command = [str(small_model), str(tmp_path / "scans"), "--output", str(tmp_path / "out.csv"), "--saliency"]
    for inside in ("scans", "scans/overlays", "scans/1/../new/overlays"):
        with pytest.raises(InputError, match=f"--saliency {tmp_path / inside}: lies in .*scans, .* choose another"):
            predict.main([*command, str(tmp_path / inside)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "1.png", "scans"]
    (tmp_path / "scans" / "metadata.csv").write_text("file_name\n1/1.png\n")  # nothing else is predicted
    predict.main([*command, str(tmp_path / "scans" / "overlays")])
    assert len(list((tmp_path / "scans" / "overlays").iterdir())) == 1


@pytest.mark.parametrize(
    ("pattern", "inside", "refused"),
    [
        ("scans/**/*.png", "scans/maps/1", True),
        ("scans/**", "scans", True),
        ("*/1/*.png", "scans/1", True),
        ("scans/1/*[0-9].p?g", "scans/1", True),
        ("scans/*", "scans/new/overlays", True),
        ("scans/**/a*.png", "scans/maps", False),
        ("scans/1/*.png", "scans/1/maps", False),
        ("scans/1/a*", "scans/1", False),
        ("*/*/*1.png", "scans", False),
    ],
)
def test_overlays_are_not_written_where_a_pattern_would_name_them(tmp_path, pattern, inside, refused):
    (tmp_path / "scans" / "1").mkdir(parents=True)
    Image.new("L", (40, 30), 90).save(tmp_path / "scans" / "1" / "a1.png")
    command = [str(tmp_path), str(tmp_path / pattern), "--output", str(tmp_path / "out.csv"), "--saliency"]
    message = "--saliency .*: what lies there is predicted by .*; choose another" if refused else NO_MODEL
    with pytest.raises(InputError, match=message):
        predict.main([*command, str(tmp_path / inside)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "a1.png", "scans"]


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        (["--shard", "1/1"], True),
        (["--shard", "2/2"], True),
        (["--shard", "1/2"], False),
        (["--overwrite"], False),
        (["--resume"], False),
    ],
)
def test_overlays_of_another_run_are_replaced_only_when_that_is_said(tmp_path, given, refused):
    Image.new("L", (40, 30), 90).save(tmp_path / "a.png")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "000004_a.png").write_text("of another model")
    command = [str(tmp_path), str(tmp_path / "a.png"), "--output", str(tmp_path / "out.csv")]
    message = "--saliency .*maps: 000004_a.png of an earlier run is there; go on" if refused else NO_MODEL
    with pytest.raises(InputError, match=message):
        predict.main([*command, "--saliency", str(tmp_path / "maps"), *given])


def test_any_name_of_a_file_is_a_row_and_an_overlay(small_model, small_phantom, tmp_path):
    image = next((small_phantom / "images").iterdir())
    names = ["one\rline.png", 'a "comma, and\nmore.png', f"{'影' * 82}.png", f"{'n' * 300}.png"]
    for name in names[:3]:
        shutil.copy(image, tmp_path / name)
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["path"], *([name] for name in names)])
    output, overlays = tmp_path / "out.csv", tmp_path / "overlays"
    predict.main([str(small_model), str(tmp_path / "list.csv"), "--output", str(output), "--saliency", str(overlays)])
    rows = rows_of(output)
    assert [os.path.basename(row["path"]) for row in rows] == names
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    assert len(list(overlays.iterdir())) == 3
    assert b"\r\n" not in output.read_bytes()


def test_labels_add_the_report_of_an_evaluation(small_model, small_phantom, tmp_path, capsys):
    evaluated = json.loads((small_model / "eval" / "test.json").read_text())
    files = pd.read_csv(small_model / "eval" / "test.csv")["path"]
    broken = tmp_path / "text.png"
    broken.write_text("no image")
    given = [*(str(small_phantom / file) for file in files), str(broken)]
    labels = ["--labels", str(small_phantom / "metadata.csv")]
    predict.main([str(small_model), *given, "--output", str(tmp_path / "out.csv"), *labels])
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["n"] == evaluated["n"]
    assert told["confusion_matrix"] == evaluated["confusion_matrix"]
    assert told["ci95"]["roc_auc"] == pytest.approx(evaluated["ci95"]["roc_auc"], abs=1e-6)
    assert told["without_label_or_unreadable"] == 1
    printed = capsys.readouterr().out
    assert "called sick" in printed
    assert f"unlike the training images: {evaluated['abstained']['images']} of {evaluated['n']}\n" in printed
    assert "left out, without a label or unreadable: 1\n" in printed
    report, clip = (tmp_path / "out.json").read_bytes(), write_clip(tmp_path / "clip.mp4", 3)
    with pytest.raises(InputError, match="out.json exists; choose another --output, or replace it with --overwrite"):
        predict.main([str(small_model), *given, "--output", str(tmp_path / "out.jsonl"), *labels])
    assert (tmp_path / "out.json").read_bytes() == report
    for shard in ("2/2", "3/3"):  # of a part that names none, and of one that is empty
        predict.main(
            [str(small_model), given[0], str(clip), "--output", str(tmp_path / "p.csv"), "--shard", shard, *labels]
        )
        assert "--labels names none of the images of this part" in capsys.readouterr().out
    (tmp_path / "both.csv").write_text(f"path,label\n{given[0]},sick\n{given[0]},normal\n")
    with pytest.raises(InputError, match="both.csv: has two labels for"):
        predict.main(
            [str(small_model), *given, "--output", str(tmp_path / "2.csv"), "--labels", str(tmp_path / "both.csv")]
        )
    (tmp_path / "other.csv").write_text("path,label\n1.png,well\n")
    with pytest.raises(InputError, match="other.csv: found the labels well; expected normal, sick"):
        predict.main(
            [str(small_model), *given, "--output", str(tmp_path / "2.csv"), "--labels", str(tmp_path / "other.csv")]
        )


def test_the_report_of_an_output_goes_with_it_where_that_is_replaced(small_model, small_phantom, tmp_path):
    image, figures = str(min((small_phantom / "images").iterdir())), tmp_path / "out.json"
    (tmp_path / "labels.csv").write_text(f"path,label\n{image},sick\n")
    command = [str(small_model), image, "--output", str(tmp_path / "out.csv"), "--overwrite"]
    predict.main([*command, "--labels", str(tmp_path / "labels.csv")])
    assert figures.exists()
    predict.main(command)
    assert not figures.exists()
    for other in ('{"n": 1}', "[]", "no report"):
        figures.write_text(other)
        predict.main(command)
        assert figures.read_text() == other


def test_a_whole_output_from_before_the_model_changed_is_not_taken_for_its_own(small_model, small_phantom, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    image, output = str(min((small_phantom / "images").iterdir())), tmp_path / "out.csv"
    command = [str(model), image, "--output", str(output), "--resume"]
    predict.main(command)
    predict.main(command)
    later = output.stat().st_mtime + 1
    shutil.copy(model / "abstention.safetensors", model / "abstention_onnx_int8.safetensors")  # as an export adds it
    os.utime(model / "abstention_onnx_int8.safetensors", (later, later))
    predict.main(command)
    os.utime(model / "config.json", (later, later))
    with pytest.raises(InputError, match="out.csv was written before .*config.json last changed; choose another --out"):
        predict.main(command)


def test_a_file_that_is_no_report_stays_when_a_run_with_labels_may_go_on(small_model, small_phantom, tmp_path):
    image, mine = str(min((small_phantom / "images").iterdir())), tmp_path / "out.json"
    (tmp_path / "labels.csv").write_text(f"path,label\n{image},sick\n")
    mine.write_text('{"mine": 1}')
    command = [str(small_model), image, "--output", str(tmp_path / "out.csv"), "--resume"]
    with pytest.raises(InputError, match="out.json exists; choose another --output"):
        predict.main([*command, "--labels", str(tmp_path / "labels.csv")])
    assert mine.read_text() == '{"mine": 1}'


def test_labels_that_came_to_nothing_are_told_of_with_what_to_do(small_model, small_phantom, tmp_path, capsys):
    image, wrong, right = min((small_phantom / "images").iterdir()), tmp_path / "wrong.csv", tmp_path / "right.csv"
    wrong.write_text("path,label\n1.png,sick\n")
    right.write_text(f"path,label\n{image},sick\n")
    command = [str(small_model), str(image), "--output", str(tmp_path / "out.csv")]
    with pytest.raises(InputError, match="none of the images .*out.csv is written; the same command with --resume"):
        predict.main([*command, "--labels", str(wrong)])
    predict.main([*command, "--resume", "--labels", str(right)])
    assert (tmp_path / "out.json").exists()
    predict.main([*command, "--resume", "--labels", str(right)])
    assert capsys.readouterr().out.endswith("out.csv is complete\n")
    (tmp_path / "out.json").unlink()
    predict.main([*command, "--resume", "--labels", str(right)])
    assert "out.csv is complete, so no report is made; " in capsys.readouterr().out


def test_intervals_of_the_report_are_over_the_groups_that_either_table_knows():
    rows = [
        {"path": f"{n}.png", "group": f"patient-{n // 4}" if n < 8 else "", "prediction": "sick", "threshold": 0.5}
        | {"probability_normal": 0.2, "probability_sick": 0.8, "abstained": False, "error": ""}
        for n in range(12)
    ]
    truth = {os.path.abspath(f"{n}.png"): predict.Truth("sick", "patient-0" if n > 9 else "", "x") for n in range(12)}
    assert predict.report(rows, ["normal", "sick"], truth)["groups"] == 4


def reported(table):
    """The numbers of predictions, all alike, of the files that a table of labels names."""
    truth = predict.read_truth(table, ["normal", "sick"])
    told = {"group": "", "prediction": "sick", "threshold": 0.5, "probability_normal": 0.2, "probability_sick": 0.8}
    return predict.report(
        [told | {"path": path, "abstained": False, "error": ""} for path in truth], ["normal", "sick"], truth
    )


def test_groups_that_no_table_names_are_proposed_and_joined_where_they_share_copies_as_evaluate_does(tmp_path):
    table = [[f"clip{n}_frame{k}.png", "sick" if n % 2 else "normal"] for n in range(8) for k in range(3)]
    for number, (name, _) in enumerate(table):
        Image.fromarray(speckle(number)).save(tmp_path / name)
    shutil.copy(tmp_path / "clip0_frame0.png", tmp_path / "clip2_frame9.png")
    table += [["clip2_frame9.png", "normal"], ["clip3_frame9.png", ""]]  # of which the last has no label
    Image.fromarray(speckle(99)).save(tmp_path / "clip3_frame9.png")
    write_table(tmp_path / "labels.csv", ["path", "label"], *table)
    evaluated = with_pixels(with_groups(load_data(tmp_path / "labels.csv")))
    told = reported(tmp_path / "labels.csv")
    assert told["n"] == 25
    assert told["groups"] == len(set(evaluated["group"])) == 7


def test_dicom_files_of_one_frame_with_one_picture_are_joined_as_evaluate_joins_them(tmp_path):
    for number, name in enumerate(("a.dcm", "b.dcm", "c.dcm")):
        write_dicom(tmp_path / name, speckle(number // 2))
    write_table(tmp_path / "labels.csv", ["path", "label"], *([f"{name}.dcm", "sick"] for name in "abc"))
    evaluated = with_pixels(with_groups(load_data(tmp_path / "labels.csv")))
    assert reported(tmp_path / "labels.csv")["groups"] == len(set(evaluated["group"])) == 2


def test_clips_of_one_person_by_their_names_are_one_group(tmp_path):
    write_table(
        tmp_path / "labels.csv", ["path", "label"], *([f"person{n // 2}_{n % 2}.avi", "sick"] for n in range(16))
    )
    assert reported(tmp_path / "labels.csv")["groups"] == 8


def test_rows_from_the_first_that_the_power_took_on_are_predicted_again(tmp_path):
    output, run = tmp_path / "out.csv", {"model": "m"}
    with Predictions(output, run, ["path"]) as rows:
        for path in ("a", "b", "c"):
            rows.add({"path": path})
    head, a, _, c = rows.file.read_bytes().splitlines(keepends=True)
    for content, left in ((head + a + b"\0\0\0\n" + c, ["a"]), (b"\0\0\0\n" + a + c, [])):
        rows.file.write_bytes(content)
        with Predictions(output, run, ["path"], resume=True) as again:
            assert again.done == len(left)
            again.add({"path": "z"})
            assert [row["path"] for row in again] == [*left, "z"]


def test_a_run_that_is_under_way_is_not_written_by_another(tmp_path):
    output = tmp_path / "out.csv"
    with Predictions(output, {}, ["path"]) as rows:
        rows.add({"path": "a"})
        for said in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="out.csv: another process is writing it; wait"):
                Predictions(output, {}, ["path"], **said)
        rows.add({"path": "b"})
        assert [row["path"] for row in rows] == ["a", "b"]
    with pytest.raises(InputError, match="a stopped run is there"):
        Predictions(output, {}, ["path"])


def test_an_output_is_not_whole_where_a_row_can_no_longer_be_read(tmp_path):
    output = tmp_path / "out.csv"
    with Predictions(output, {}, ["path"]) as rows:
        for path in ("a", "b", "c"):
            rows.add({"path": path})
        rows.file.write_bytes(rows.file.read_bytes().replace(b'"b"', b'"b'))
        with pytest.raises(InputError, match="row 2 of 3 .*out.csv.unfinished cannot be read; .* --resume"):
            rows.finish()
    assert not output.exists()
    with Predictions(output, {}, ["path"], resume=True) as again:
        assert again.done == 1

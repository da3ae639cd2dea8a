import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from space.errors import InputError
from tests.conftest import RECIPES, ROOT
from training import cli, train
from training.outputs import new_file, new_folder, refuse_existing, writing
from training.phantom import write_phantom

SCRIPT = Path(sys.executable).parent / "chest-opacity"


def call(*arguments, **settings):
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, **settings)


def test_help_lists_every_verb():
    told = call("--help")
    assert told.returncode == 0
    assert all(verb in told.stdout for verb in cli.VERBS)


def test_an_unknown_verb_is_one_line():
    told = call("trian")
    assert told.returncode == 1
    assert told.stderr.strip() == "error: unknown verb 'trian'; expected one of " + ", ".join(cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_defaults(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chest-opacity", verb, "--help"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert f"chest-opacity {verb}" in printed
    assert "default" in printed


def test_bad_input_is_one_line_and_exit_code_1_and_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    told = call("train", str(RECIPES / "phantom.yaml"), "--data", "empty", "--sites", "A", cwd=tmp_path)
    assert told.returncode == 1
    assert told.stderr.strip() == (
        "error: empty: found no images; expected a folder for each class, or a table with a row for each"
    )
    assert os.listdir(tmp_path) == ["empty"]


def test_an_interrupt_is_one_word():
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="stopped"):
        cli.run(interrupted, [])


def test_being_told_to_end_is_an_interrupt(tmp_path):
    code = "import os, signal\nfrom training import cli\n"
    code += "cli.run(lambda _: os.kill(os.getpid(), signal.SIGTERM) or signal.pause(), [])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (told.returncode, told.stderr) == (1, "stopped\n")


def test_a_verb_s_error_reaches_the_shell_in_one_line():
    with pytest.raises(SystemExit, match="^error: nope.yaml: no such recipe"):
        cli.run(train.main, ["nope.yaml"])


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_what_fails_half_way_leaves_nothing(make, tmp_path):
    def write(path: Path):
        if make is new_folder:
            path.mkdir()
            path = path / "file"
        path.write_text("half")

    with pytest.raises(RuntimeError), make(tmp_path / "out") as work:
        write(work)
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with make(tmp_path / "out") as work:
        write(work)
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_holds_nothing_of_a_killed_run_that_had_the_same_process_id(tmp_path):
    old = tmp_path / f".out.{os.getpid()}.unfinished" / "images" / "old.png"
    old.parent.mkdir(parents=True)
    old.touch()
    with new_folder(tmp_path / "out") as work:
        write_phantom(work, scale=0.01)
    assert not (tmp_path / "out" / "images" / "old.png").exists()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_is_made_where_a_link_leads(there, tmp_path):
    real = tmp_path / "disk" / "real"
    (real if there else real.parent).mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    refuse_existing(tmp_path / "link", "")
    with new_folder(tmp_path / "link") as work:
        assert work.parent == real.parent  # or it could not be renamed
        work.mkdir()
        (work / "file").touch()
    assert os.listdir(real) == ["file"]
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(real.parent) == ["real"]


def test_a_mount_point_is_refused_since_no_folder_can_take_its_place(tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    for path in (Path("/proc"), tmp_path / "link"):
        with pytest.raises(InputError, match=r"^/proc: a disk is mounted there.*, such as /proc/model$"):
            refuse_existing(path, "choose another")


def test_weights_that_cannot_be_written_are_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot write .*out"), writing(tmp_path / "out"):
        save_file({"weights": np.zeros(1)}, tmp_path / "nowhere" / "model.safetensors")


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot write .*No space left on device"), new_file(tmp_path / "out") as work:
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)
        work.write_text("never reached")
    assert os.listdir(tmp_path) == []

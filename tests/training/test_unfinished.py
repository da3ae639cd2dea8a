import resource
import subprocess
import sys
import textwrap

import pytest

from space.errors import InputError
from training.unfinished import difference, last_checkpoint, read_run, unfinished


def open_unfinished(*given):
    with unfinished(*given):
        pass


def checkpoints(folder, **states):
    for name, state in states.items():
        (folder / name.replace("_", "-")).mkdir(parents=True)
        if state is not None:
            (folder / name.replace("_", "-") / "trainer_state.json").write_text(state)


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    checkpoints(tmp_path, checkpoint_9="{}", checkpoint_10="{}", checkpoint_20='{"half', checkpoint_30=None)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "absent") is None


def test_what_the_same_run_left_is_kept_but_for_what_was_cut_short(tmp_path):
    work = tmp_path / ".m.unfinished"
    open_unfinished(work, {"seed": 1}, False)
    checkpoints(work / "checkpoints", checkpoint_9="{}", checkpoint_10="{}", checkpoint_30=None)
    (work / "model").mkdir()
    open_unfinished(work, {"seed": 1}, False)
    left = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_dir())
    assert left == ["checkpoints", "checkpoints/checkpoint-10", "checkpoints/checkpoint-9"]


def test_a_run_of_an_earlier_version_that_kept_where_it_was_pushed_is_gone_on_with(tmp_path):
    open_unfinished(tmp_path, {"seed": 1, "push_to_hub": True, "hub_strategy": "every_save"}, False)
    checkpoints(tmp_path / "checkpoints", checkpoint_9="{}")
    open_unfinished(tmp_path, {"seed": 1}, False)
    assert last_checkpoint(tmp_path / "checkpoints")


@pytest.mark.parametrize("left", ["", "half: [", None])
def test_checkpoints_of_which_nothing_tells_the_run_are_not_thrown_away(tmp_path, left):
    """As when the power failed, or the disk was full."""
    open_unfinished(tmp_path / "w", {"seed": 1}, False)
    checkpoints(tmp_path / "w" / "checkpoints", checkpoint_9="{}")
    (tmp_path / "w" / "run.yaml").unlink()
    if left is not None:
        (tmp_path / "w" / "run.yaml").write_text(left)
    with pytest.raises(InputError, match=r"w: .*checkpoint-9.* no run\.yaml that can be read.*--overwrite true") as no:
        open_unfinished(tmp_path / "w", {"seed": 1}, False)
    assert "\n" not in str(no.value)
    assert last_checkpoint(tmp_path / "w" / "checkpoints")
    open_unfinished(tmp_path / "w", {"seed": 1}, True)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["lock", "run.yaml"]


def test_what_a_run_is_outlasts_a_disk_that_is_full_when_it_goes_on(tmp_path):
    open_unfinished(tmp_path, {"seed": 1}, False)
    checkpoints(tmp_path / "checkpoints", checkpoint_9="{}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2, before[1]))
        open_unfinished(tmp_path, {"seed": 1}, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_run(tmp_path) == {"seed": 1}


def test_a_run_is_known_again_by_its_first_difference(tmp_path):
    assert read_run(tmp_path) == {}
    open_unfinished(tmp_path, {"seed": 1, "sites": ("A", "B")}, False)
    assert read_run(tmp_path) == {"seed": 1, "sites": ["A", "B"]}
    assert difference(read_run(tmp_path), {"sites": ["A", "B"], "seed": 1}) is None
    assert difference(read_run(tmp_path), {"seed": 1, "sites": ["A"], "lr": 1}) == (
        "sites: ['A', 'B'] where this one has ['A']"
    )
    (tmp_path / "run.yaml").write_text("half: [")
    assert read_run(tmp_path) == {}


@pytest.mark.parametrize("other", [{"seed": 2}, {"seed": 1, "lr": 1.0}, {}])
def test_another_run_is_refused_unless_it_may_be_overwritten(tmp_path, other):
    open_unfinished(tmp_path / "w", {"seed": 1}, False)
    checkpoints(tmp_path / "w" / "checkpoints", checkpoint_9="{}")
    with pytest.raises(InputError, match=r"w: a stopped run is there with .*--overwrite true") as refusal:
        open_unfinished(tmp_path / "w", other, False)
    assert "\n" not in str(refusal.value)
    assert last_checkpoint(tmp_path / "w" / "checkpoints")
    open_unfinished(tmp_path / "w", other, True)
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_run_that_ended_before_its_first_checkpoint_gives_way_to_another(tmp_path):
    """As when its recipe was a mistake, which is mended now."""
    open_unfinished(tmp_path, {"lr": 1e30}, False)
    checkpoints(tmp_path / "checkpoints", checkpoint_9='{"half')
    (tmp_path / "samples.png").write_bytes(b"of another run")
    open_unfinished(tmp_path, {"lr": 1e-3}, False)
    assert read_run(tmp_path) == {"lr": 1e-3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "run.yaml"]


def test_a_run_that_is_under_way_is_not_opened_by_another_process_even_to_be_given_up(tmp_path):
    trying = textwrap.dedent(f"""
        from pathlib import Path
        from space.errors import InputError
        from training.unfinished import unfinished
        for run in ({{"seed": 1}}, {{"seed": 2}}):
            for overwrite in (False, True):
                try:
                    with unfinished(Path({str(tmp_path / "w")!r}), run, overwrite):
                        print("opened")
                except InputError as error:
                    print("under way" if "a run is under way there; wait for its end" in str(error) else error)
    """)

    def answers():
        return subprocess.run([sys.executable, "-c", trying], capture_output=True, text=True).stdout.split("\n")

    with unfinished(tmp_path / "w", {"seed": 1}, False):
        checkpoints(tmp_path / "w" / "checkpoints", checkpoint_9="{}")
        assert answers() == ["under way"] * 4 + [""]
        assert last_checkpoint(tmp_path / "w" / "checkpoints")
    assert answers()[0] == "opened"

"""What a model has learned from: kept along when it becomes a base, wherever that lies."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from space.errors import InputError
from tests.hub import Fault
from training import measure
from training.learned import COLUMNS, has_seen_nobody, learned_by, seen_before, split_table

BASE = pd.DataFrame([["theirs.png", "covid", "P1", "C", "aa"], ["again.png", "sick", "P2", "C", "bb"]], columns=COLUMNS)


@pytest.fixture
def learned(small_model, tmp_path):
    """The small model's folder, of which two images of another site were learned besides."""
    folder = shutil.copytree(small_model, tmp_path / "model")
    split = pd.read_csv(folder / "split.csv", dtype=str)
    pd.concat([split, BASE.assign(split="also")]).to_csv(folder / "split.csv", index=False)
    return folder


def test_a_base_passes_on_what_it_was_trained_on_and_what_its_own_base_was(learned, small_model):
    split = pd.read_csv(small_model / "split.csv", dtype=str)
    table = learned_by(str(learned))
    assert set(table["pixels"]) == {*split["pixels"][split["split"] == "train"], "aa", "bb"}
    assert set(table["split"]) == {"also"}


@pytest.mark.xdist_group("hub")
def test_a_base_on_the_hub_does_too_and_what_is_no_model_folder_passes_on_nothing(hub, client, learned, tmp_path):
    hub.add("model", "clinic/taught", learned)
    (learned / "split.csv").unlink()
    (tmp_path / "weights").mkdir()
    hub.add("model", "clinic/untaught", learned)
    code = "from training.learned import learned_by; print(*(len(learned_by(base)) for base in {}))"
    bases = ["clinic/taught", "clinic/untaught", "scratch:resnet-18", str(learned), str(tmp_path / "weights")]
    count, *others = map(int, client.read(code.format(bases)).split())
    assert count > 2
    assert others == [0] * 4


@pytest.fixture
def cached(small_model):
    """The snapshot of clinic/cached in the Hub's cache: what predict fetches of the small model."""
    repository = Path(os.environ["HF_HOME"], "hub", "models--clinic--cached")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    folder = repository / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    for file in (*small_model.glob("*.json"), *small_model.glob("*.safetensors")):
        shutil.copy(file, folder)
    yield folder
    shutil.rmtree(repository)


def test_a_base_in_the_cache_without_its_table_is_refused_when_train_has_made_it(cached):
    with pytest.raises(InputError, match="clinic/cached: split.csv: .* nobody knows which images"):
        learned_by("clinic/cached")
    assert not has_seen_nobody("clinic/cached")
    config = json.loads((cached / "config.json").read_text())
    del config["calibration"]
    (cached / "config.json").write_text(json.dumps(config))
    assert learned_by("clinic/cached").empty


@pytest.mark.xdist_group("hub")
def test_a_base_whose_table_the_hub_keeps_back_is_refused(hub, client, learned):
    hub.add("model", "clinic/kept", learned)
    hub.faults = [Fault("split.csv", 403, times=9)]
    code = """
from space.errors import InputError
from training.learned import learned_by
try:
    print(len(learned_by("clinic/kept")))
except InputError as error:
    print(error)
"""
    assert "clinic/kept: split.csv: the token may not do this" in client.read(code)


@pytest.mark.xdist_group("hub")
def test_a_base_that_does_not_say_from_whom_it_has_learned_has_seen_somebody(hub, client, learned):
    hub.add("model", "clinic/saying", learned)
    (learned / "eval" / "training.json").unlink()
    hub.add("model", "clinic/silent", learned)
    (learned / "split.csv").unlink()
    hub.add("model", "clinic/weights", learned)
    code = "from training.learned import has_seen_nobody; print(*map(has_seen_nobody, {}))"
    bases = ["clinic/saying", "scratch:resnet-18", "clinic/silent", "clinic/weights", str(learned)]
    assert client.read(code.format(bases)).split() == ["True", "True", "False", "False", "False"]


def test_a_base_whose_table_is_spoiled_is_refused(learned):
    (learned / "split.csv").write_text("nothing")
    with pytest.raises(InputError, match="split.csv: found no table of path, label, group, site, pixels and split"):
        learned_by(str(learned))


def test_the_table_has_what_a_part_learned_only_once_and_what_is_measured_though_the_base_knows_it(parts):
    first, held = ({name: parts[part][0][name] for name in COLUMNS} for part in ("train", "test"))
    assert first["pixels"] != held["pixels"]
    base = pd.concat([BASE, BASE[:1], pd.DataFrame([first, held]).assign(label="sick")]).assign(split="also")
    both = {part: parts[part] for part in ("train", "validation", "test")}
    table = split_table(both | {"also": parts["external"]}, base)
    assert list(table.columns) == [*COLUMNS, "split"]
    assert table["path"].is_monotonic_increasing
    also = table[table["split"] == "also"]
    assert sorted(also["pixels"]) == sorted([*parts["external"]["pixels"], "aa", "bb", held["pixels"]])
    own = table[table["split"] != "also"]
    assert sorted(own["pixels"]) == sorted(pixels for rows in both.values() for pixels in rows["pixels"])
    assert seen_before(base, "mine", both) == [
        f"mine was trained on 1 of {len(parts['test'])} images of the test part, {held['path']} for one"
    ]


def test_a_site_that_was_learned_besides_is_not_elsewhere(learned, parts):
    there = parts["external"].select(range(2))
    assert measure._is_elsewhere(learned, there.remove_columns("site").add_column("site", ["D", "D"]))
    assert not measure._is_elsewhere(learned, there.remove_columns("site").add_column("site", ["C", "D"]))
    split = pd.read_csv(learned / "split.csv", dtype=str, keep_default_na=False)
    split.assign(site=split["site"].mask(split["path"] == "again.png", "")).to_csv(learned / "split.csv", index=False)
    assert not measure._is_elsewhere(learned, there.remove_columns("site").add_column("site", ["C", "C"]))

"""A model of real images on the Hub: it names no patient, no file and no folder, and works as one that does."""

import json
import re
import shutil

import pandas as pd
import pytest
import yaml
from PIL import Image

from space.errors import InputError
from tests.images import speckle, write_table
from tests.training.test_push import held, local_files
from training import push, train
from training.card import write_card
from training.nameless import without_places
from training.report import write_report

pytestmark = pytest.mark.xdist_group("hub")


def save(folder, *names, first):
    for number, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(speckle(number)).save(folder / name)


@pytest.fixture(scope="module")
def ward(small_base, tmp_path_factory):
    """A folder with data of three kinds, all of which name patients in other ways, and in m the model of them."""
    folder = tmp_path_factory.mktemp("Doe_ward")
    clips = [f"{('normal', 'sick')[clip % 2]}/Doe_John{clip}" for clip in range(16)]
    save(folder / "home", *(f"{clip}_frame{frame}.png" for clip in clips for frame in (1, 2)), first=0)
    (folder / "home" / "sick" / "Doe_John0.wmv").write_bytes(b"of no kind that is read")
    away = [f"scans/Doe_Jane{number}.png" for number in range(7)] + ["scans/normal_Doe.png"]
    save(folder / "away", *away, "Doe_unlisted.png", first=100)
    shutil.copy(folder / "home" / "normal" / "Doe_John0_frame1.png", folder / "away" / away[0])
    rows = [[name, ("normal", "sick")[number % 2], f"Doe_Jane{(number + 3) // 4}"] for number, name in enumerate(away)]
    rows = [[*row, f"site {number // 6}"] for number, row in enumerate(rows)]
    write_table(folder / "away" / "metadata.csv", ["file_name", "label", "group", "site"], *rows)
    save(folder / "more", "normal/Doe_Jane1/1.png", "sick/Doe_Jane1/2.png", first=200)
    near = folder.name  # as relative paths are given
    recipe = {"data": folder / "home", "external": f"{near}/away", "also": f"{near}/more", "output_dir": folder / "m"}
    recipe |= {"model_name_or_path": small_base, "image_size": 64, "num_train_epochs": 1, "strict": "false"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({key: str(value) for key, value in recipe.items()}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)  # where such names are folders, and not the Hub's as where it is pushed from
        train.main([str(folder / "recipe.yaml"), "--bf16", "false"])
    return folder


@pytest.fixture
def model(ward, tmp_path):
    return shutil.copytree(ward / "m", tmp_path / "m")


def naming(files):
    """Those of a model's files that name somebody or something of the ward, or the folder of the base."""
    picture, names = rb"data:image/png;base64,[^\"]*", rb"Doe|frame\d|/home|/bases"
    return {name for name, content in files.items() if re.search(names, re.sub(picture, b"", content))}


TEXTS = {"README.md", "recipe.yaml", "split.csv", "eval/audit.json", "eval/test.csv", "eval/external.csv"}


def test_what_is_pushed_names_nobody_and_the_folder_stays_as_it_is(hub, client, ward):
    before = local_files(ward / "m")
    assert naming(before) == TEXTS | {"report.html"}
    told = client.run("push", ward / "m", "--repo", "clinic/ward")
    assert told.code == 0, told.err
    assert "images and groups have numbers for names in what is sent" in told.out
    there = held(hub.repository("model", "clinic/ward"))
    assert not naming(there)
    assert {name for name in there if there[name] != before[name]} == TEXTS
    assert local_files(ward / "m") == before
    assert "nothing has changed since commit" in client.run("push", ward / "m", "--repo", "clinic/ward").out


def test_only_names_are_others_and_a_group_has_one_number_in_all_files(ward, tmp_path):
    files = push.model_upload(ward / "m", "clinic/x", tmp_path, rights=True).files
    assert not naming({name: path.read_bytes() for name, path in files.items()})
    numbers = {}
    for name in ("split.csv", "eval/test.csv", "eval/external.csv"):
        here, there = (pd.read_csv(path, dtype=str) for path in (ward / "m" / name, files[name]))
        both = here.merge(there, "outer", "pixels", suffixes=("", "_there"), validate="1:1")
        for column in set(here) - {"path", "group", "pixels"}:
            assert both[column].equals(both[f"{column}_there"])
        for group, number in zip(both["group"], both["group_there"], strict=True):
            assert numbers.setdefault(group, number) == number
    assert len(set(numbers.values())) == len(numbers) > 16
    audit = json.loads(files["eval/audit.json"].read_text())
    assert list(audit["data"]) == ["DATA", "EXTERNAL", "ALSO"]
    assert audit["leaks"] == ["1 pairs of exact copies stand in different parts"]
    assert audit["warnings"] == [
        "DATA: 1 files are of no kind that is read and are left out",
        "DATA: 16 groups are proposed from file names (clip_frame)",
        "EXTERNAL: 1 image files are not in its metadata.csv and are left out",
        "EXTERNAL: 1 groups stand at more than one site; write the site into the group where these are other patients",
        "EXTERNAL: 1 groups have a name that another data set has too; put both into one table if they are the same "
        "patients",
        "ALSO: 1 names of groups stand in more than one class and are taken for a patient of each; tell groups in a "
        "table where it is one patient",
        "EXTERNAL: 1 file names contradict their labels",
    ]


def test_a_config_that_names_the_folder_of_its_base_is_sent_without_it(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    told = json.loads((model / "eval" / "external.json").read_text())
    (model / "eval" / "external.json").write_text(json.dumps(told | {"synthetic": False}))
    config = json.loads((model / "config.json").read_text())
    body = {"model_type": "resnet"}
    named = config | {"body": body | {"_name_or_path": "/scans/Doe_John"}}
    (model / "config.json").write_text(json.dumps(named))
    sent = push.model_upload(model, "clinic/x", tmp_path).files["config.json"].read_text()
    assert json.loads(sent) == config | {"body": body}


def test_a_patient_of_two_classes_is_not_named_as_audits_once_named_him(model, tmp_path):
    told = "given; 1 folders of two classes have one name, Doe_Both, and are taken for two patients"
    audit = json.loads((model / "eval" / "audit.json").read_text())
    for name, data in audit["data"].items():
        data["groups_are"] = told
        audit["warnings"] = [f"{name}: groups are {told}; frames of one patient may stand in several parts"]
    (model / "eval" / "audit.json").write_text(json.dumps(audit))
    write_card(model)
    write_report(model)
    files = push.model_upload(model, "clinic/x", tmp_path).files
    assert not naming({name: path.read_bytes() for name, path in files.items()})
    assert "have one name, and are taken for two patients" in files["README.md"].read_text()


def test_a_group_keeps_its_number_when_an_evaluation_of_more_of_its_images_is_added(model, tmp_path):
    split = push.model_upload(model, "clinic/x", tmp_path).files["split.csv"].read_text()
    told = json.loads((model / "eval" / "test.json").read_text())
    (model / "eval" / "more.json").write_text(json.dumps(told | {"name": "more"}))
    table = pd.read_csv(model / "eval" / "test.csv", dtype=str)
    table.assign(pixels=[f"{number:064x}" for number in range(len(table))]).to_csv(model / "eval" / "more.csv")
    files = push.model_upload(model, "clinic/x", tmp_path).files
    assert files["split.csv"].read_text() == split
    known = set(pd.read_csv(files["split.csv"])["group"])
    assert set(pd.read_csv(files["eval/more.csv"])["group"]) <= known


def test_a_model_without_names_knows_its_images_by_their_pixels(hub, client, ward):
    client.run("push", ward / "m", "--repo", "clinic/fetched")
    repository = hub.repository("model", "clinic/fetched")
    before, folder = held(repository), client.here / "models" / "fetched"
    for words in (["test", "--split", "test"], ["all"]):
        told = client.run("evaluate", "clinic/fetched", "--data", ward / "home", "--name", *words)
        assert told.code == 0, told.err
    assert (folder / "eval" / "test.json").read_bytes() == (ward / "m" / "eval" / "test.json").read_bytes()
    split = pd.read_csv(ward / "m" / "split.csv")
    trained = (split["split"] == "train").sum()
    assert f"warning: {trained} of these 32 images were trained on" in told.out
    code = "from training.learned import learned_by; print(*learned_by('clinic/fetched')['pixels'])"
    assert set(client.read(code).split()) == set(split["pixels"][split["split"].isin({"train", "also"})])
    told = client.run("evaluate", folder, "--data", ward / "away", "--split", "train", "--name", "x")
    assert "found no labelled images of the train part" in told.line
    assert client.run("push", folder, "--repo", "clinic/fetched").code == 0
    after = held(repository)
    assert not naming(after)
    added = {f"eval/all{end}" for end in (".csv", ".json", "_performance.png", "_trust.png")}
    assert {name for name in after if after[name] != before.get(name)} == {"README.md", "eval/comparison.png"} | added
    assert "nothing has changed" in client.run("push", folder, "--repo", "clinic/fetched").out


def test_its_data_set_is_the_one_that_its_folder_gives(hub, client, ward):
    words = ["--dataset", "clinic/wards", "--data", ward / "home", "--i-have-the-rights"]
    assert client.run("push", ward / "m", "--repo", "clinic/both", *words).code == 0
    client.read("from training.hub import model_folder; model_folder('clinic/both')")
    told = client.run("push", client.here / "models" / "both", "--repo", "clinic/both", *words)
    assert told.out.count("nothing has changed since commit") == 2
    words[3] = ward / "away"
    told = client.run("push", client.here / "models" / "both", "--repo", "clinic/both", *words)
    assert "images in the model's split.csv are not there as they were, image-" in told.line


def test_lines_that_were_added_to_the_card_stay_and_changed_ones_with_names_are_refused(model, tmp_path):
    (model / "README.md").write_text(card := (model / "README.md").read_text() + "\nMore.\n")
    assert push.model_upload(model, "clinic/x", tmp_path).files["README.md"].read_text().endswith("\nMore.\n")
    (model / "README.md").write_text(card.replace(", Doe_unlisted.png for one", ", of Doe for one"))
    with pytest.raises(InputError, match="README.md: a line of it that names data of this machine"):
        push.model_upload(model, "clinic/x", tmp_path)


def test_a_table_that_does_not_tell_the_pixels_is_refused(model, tmp_path):
    file = model / "eval" / "test.csv"
    pd.read_csv(file).drop(columns="pixels").to_csv(file, index=False)
    with pytest.raises(InputError, match=r"eval/test.csv: found no table .* \(it lacks pixels\); evaluate again"):
        push.model_upload(model, "clinic/x", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "sent"),
    [
        ("data", "/scans/Doe", "DATA"),
        ("data", "clips/Doe?frames=16", "DATA?frames=16"),
        ("data", "clinic/frames?split=train", "clinic/frames?split=train"),
        ("data", "phantom?seed=1", "phantom?seed=1"),
        ("external", "clinic/other?revision=v1", "clinic/other?revision=v1"),
        ("external", "ward/Doe", "EXTERNAL"),
        ("also", "ward/Doe?frames=16", "ALSO?frames=16"),
        ("also", "Doe.csv", "ALSO"),
        ("also", "phantom?sites=120", "phantom?sites=120"),
        ("also", None, None),
        ("output_dir", "/scans/models/first", "first"),
        ("model_name_or_path", "clinic/base", "clinic/base"),
        ("model_name_or_path", "models/lus", "lus"),
        ("model_name_or_path", "scratch:resnet-18", "scratch:resnet-18"),
        ("hub_model_id", "clinic/run", "clinic/run"),
    ],
)
def test_a_recipe_names_the_hub_s_and_no_folder_of_this_machine(key, value, sent):
    from_hub = {"base": "clinic/base", "data": "clinic/frames", "external": "clinic/other", "also": None}
    assert without_places({key: value}, from_hub) == {key: sent}

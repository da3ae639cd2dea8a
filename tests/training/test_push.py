"""The way to the Hub, over HTTP with the unmodified client in a process of its own."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub.repocard import metadata_load

from space.errors import InputError
from tests.conftest import ROOT
from tests.hub import OTHER, OWNER, READER, Fault
from training import push, repositories
from training.card import write_card
from training.hub import plainly

pytestmark = pytest.mark.xdist_group("hub")


@pytest.fixture
def model(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "small")


def local_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_pushed(folder, repo):
    """The files of a model folder, whose card's example loads the repository."""
    files = local_files(folder)
    return files | {"README.md": re.sub(rb'(, model=)"[^"]*"', rb'\1"%s"' % repo.encode(), files["README.md"])}


def held(repository, revision="main"):
    return {name: repository.read(name, revision) for name in repository.files(revision) if name != ".gitattributes"}


def titles(repository, revision="main"):
    return [commit["title"] for commit in repository.log(repository.find(revision))]


def test_evaluations_in_a_folder_that_is_a_link_belong_to_the_model_too(model, tmp_path):
    files = repositories.own_files("model", model).keys()
    shutil.move(model / "eval", tmp_path / "elsewhere")
    (model / "eval").symlink_to(tmp_path / "elsewhere")
    assert "eval/test.json" in files
    assert repositories.own_files("model", model).keys() == files


def test_a_place_for_its_work_that_cannot_be_written_is_one_line(model, tmp_path):
    with pytest.raises(InputError, match="^cannot write .*nowhere: .* No such file or directory"):
        push.model_upload(model, "clinic/whole", tmp_path / "nowhere")


def test_a_model_folder_becomes_a_repository_in_one_commit_that_pipeline_loads(hub, client, model):
    (model / ".DS_Store").write_text("hidden")
    (model / "notes.txt").write_text("mine")
    (model / "mlp_head.py").write_text("# a head's own code")
    told = client.run("push", model, "--repo", "clinic/whole")
    assert told.code == 0, told.err
    assert "not part of a model folder, so not sent: notes.txt" in told.out
    repository = hub.repository("model", "clinic/whole")
    local = as_pushed(model, "clinic/whole")
    assert held(repository) == {name: local[name] for name in local if name not in {".DS_Store", "notes.txt"}}
    assert titles(repository) == ["Push small", "initial commit"]
    assert repository.files()["model.safetensors"]["large"]
    card = repository.read("README.md").decode()
    assert all(picture in local for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card))
    assert 'classify = pipeline("image-classification", model="clinic/whole")' in card
    code = """
import json
from huggingface_hub import model_info
from transformers import pipeline
auc = [result for result in model_info("clinic/whole").card_data.eval_results if result.metric_type == "roc_auc"]
answer = pipeline("image-classification", model=NAME)(EXAMPLE)
print(json.dumps([[auc[0].metric_value, auc[0].metric_args["ci95"]], answer]))
"""
    example = f"'{ROOT}/space/examples/synthetic-normal.png'"
    auc, from_hub = json.loads(client.read(code.replace("NAME", "'clinic/whole'").replace("EXAMPLE", example)))
    _, from_here = json.loads(client.read(code.replace("NAME", f"'{model}'").replace("EXAMPLE", example)))
    assert from_hub == from_here
    test = json.loads((model / "eval" / "test.json").read_text())
    assert auc == [round(test["roc_auc"], 4), [round(bound, 4) for bound in test["ci95"]["roc_auc"]]]


def test_a_second_push_commits_nothing_and_a_later_one_what_changed_as_the_dry_run_says(hub, client, model):
    repository = hub.repository("model", "clinic/again")
    dry = client.run("push", model, "--repo", "clinic/again", "--dry-run", token="")
    assert dry.code == 0, dry.err
    assert not repository
    assert set(re.findall(r"^  \+ (\S+)", dry.out, re.MULTILINE)) == set(local_files(model))
    assert client.run("push", model, "--repo", "clinic/again").code == 0
    hub.asked.clear()
    told = client.run("push", model, "--repo", "clinic/again")
    assert "nothing has changed since commit" in told.out
    assert len(titles(repository)) == 2
    assert {asked.method for asked in hub.asked} == {"GET"}

    (model / "eval" / "more.json").write_text('{"name": "more"}')
    picture = next((model / "eval").glob("test_*.png"))
    picture.unlink()
    (model / "README.md").write_text((model / "README.md").read_text() + "\nMore.\n")
    before = repository.files()
    dry = client.run("push", model, "--repo", "clinic/again", "--dry-run")
    hub.asked.clear()
    assert client.run("push", model, "--repo", "clinic/again").code == 0
    after = repository.files()
    changes = {("+", name) for name in after.keys() - before.keys()} | {("-", n) for n in before.keys() - after.keys()}
    changes |= {("~", name) for name in after.keys() & before.keys() if before[name] != after[name]}
    assert set(re.findall(r"^  ([+~-]) (\S+)", dry.out, re.MULTILINE)) == changes
    assert changes == {("+", "eval/more.json"), ("-", f"eval/{picture.name}"), ("~", "README.md")}
    assert held(repository) == as_pushed(model, "clinic/again")
    assert hub.sent() == 0


def test_a_branch_a_tag_and_privacy_are_as_asked(hub, client, model):
    words = ["push", model, "--repo", "clinic/private"]
    assert client.run(*words, "--private", "--tag", "v1").code == 0
    repository = hub.repository("model", "clinic/private")
    assert repository.state["private"]
    assert repository.state["tags"] == {"v1": repository.find("main")}
    assert client.run(*words, "--tag", "v1").code == 0
    (model / "eval" / "more.json").write_text('{"name": "more"}')
    assert "the tag v1 names another commit already" in client.run(*words, "--tag", "v1").line
    assert client.run(*words, "--revision", "next", "--tag", "v2").code == 0
    assert set(repository.files("next")) - set(repository.files("main")) == {"eval/more.json"}
    assert repository.state["tags"]["v2"] == repository.find("next")
    for stranger in ("", OTHER):
        told = client.run("evaluate", "clinic/private", "--data", "phantom", "--name", "x", token=stranger)
        assert "it is not there, or it is private" in told.line
    assert client.run("push", model, "--repo", "clinic/public").code == 0
    told = client.run("push", model, "--repo", "clinic/public", "--private")
    assert "it exists and is public" in told.line
    assert titles(hub.repository("model", "clinic/public")) == ["Push small", "initial commit"]


def test_the_space_holds_the_page_and_names_its_model(hub, client, model, small_phantom):
    words = ["push", model, "--repo", "clinic/shown", "--space", "clinic/page"]
    assert client.run(*words).code == 0
    repository = hub.repository("space", "clinic/page")
    page = ROOT / "space"
    files = [path for path in page.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    here = {path.relative_to(page).as_posix(): path.read_bytes() for path in files}
    assert held(repository) == here | {"README.md": repository.read("README.md")}
    assert repository.state["variables"] == {"MODEL_ID": "clinic/shown"}
    (client.here / "README.md").write_bytes(repository.read("README.md"))
    told, was = metadata_load(client.here / "README.md"), metadata_load(page / "README.md")
    assert told == was | {  # no preload_from_hub: while a Space is built it has no token for a private model
        "title": "Chest opacity: shown",
        "license": "apache-2.0",
        "models": ["clinic/shown"],
    }
    assert (told["sdk"], told["app_file"], told["python_version"]) == ("gradio", "app.py", "3.11")
    assert len(told["short_description"]) <= 60
    assert "nothing has changed since commit" in client.run(*words).out.splitlines()[-1]
    assert client.run("push", model, "--repo", "clinic/other", "--space", "clinic/page").code == 0
    assert repository.state["variables"] == {"MODEL_ID": "clinic/other"}
    assert hub.repository("space", "clinic/page").log(repository.find("main"))[0]["title"] == "Push small"


def test_a_model_of_the_hub_is_evaluated_in_a_folder_of_its_name_and_pushed_again(hub, client, model, small_phantom):
    hub.add("model", "clinic/back", model)
    words = ["evaluate", "clinic/back", "--data", small_phantom, "--sites", "B", "--name", "b"]
    assert client.run(*words).code == 0
    folder = client.here / "models" / "back"
    assert (folder / "eval" / "b.json").is_file()
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert client.read("from training.hub import model_folder; print(model_folder('clinic/back'))") == "models/back\n"
    told = client.run("push", folder, "--repo", "clinic/back")
    changed = set(re.findall(r"^  [+~-] (\S+)", told.out, re.MULTILINE))
    assert {"README.md", "eval/b.json", "eval/b.csv"} <= changed
    assert not changed & {"config.json", "model.safetensors", "split.csv", "eval/test.json", "eval/training.json"}
    repository = hub.repository("model", "clinic/back")
    repository.commit("main", "theirs", {"eval/theirs.json": repository.keep(b"{}")}, [], "clinic")
    told = client.run("push", folder, "--repo", "clinic/back")
    assert "clinic/back: eval/theirs.json is there and not here; put it here (hf download clinic/back" in told.line
    assert titles(repository)[0] == "theirs"
    (folder / "config.json").write_text("{}")
    assert "models/back exists and is another model than clinic/back" in client.run(*words).line


def test_an_evaluation_of_other_images_is_not_replaced_by_one_of_the_same_name(hub, client, model):
    words = ["push", model, "--repo", "clinic/same"]
    assert client.run(*words).code == 0
    repository, mine = hub.repository("model", "clinic/same"), (model / "eval" / "external.csv").read_bytes()
    others, fewer = re.sub(rb"\b[0-9a-f]{64}\b", b"0" * 64, mine), mine[: mine[:-1].rindex(b"\n") + 1]
    for title, table in (("theirs", others), ("before", fewer)):
        files = {"eval/external.json": b'{"name": "external"}', "eval/external.csv": table}
        repository.commit("main", title, {name: repository.keep(text) for name, text in files.items()}, [], "clinic")
        told = client.run(*words)
        if title == "theirs":
            assert "eval/external.json is of other images there; evaluate with another --name, or" in told.line
            assert titles(repository)[0] == "theirs"
    assert told.code == 0, told.err
    assert held(repository) == as_pushed(model, "clinic/same")


FAULTS = [
    # what goes wrong (nothing, for what is asked is wrong), words after `push MODEL --repo`, token, what is said
    ([], ["clinic/x"], "", "found no token for the Hub"),
    ([], ["clinic/x"], READER, "the token may not do this: it only reads"),
    ([], ["clinic/x"], "hf_expired", "the token is not accepted: it is unknown, expired or withdrawn"),
    ([], ["other/x"], OWNER, "the name belongs to others"),
    ([], ["clinic/taken"], OWNER, "it exists and holds something else, tokenizer.json for one"),
    ([], ["no-slash"], OWNER, "no-slash: no name of a repository, expected user/name"),
    ([], ["clinic/a..b"], OWNER, "no name of a repository"),
    ([], ["a b/c"], OWNER, "no name of a repository"),
    ([], ["clinic/x", "--dataset", "clinic/d"], OWNER, "--dataset and --data go together"),
    ([], ["clinic/x", "--space", "clinic/s", "--revision", "r"], OWNER, "--space shows the model's main branch"),
    (
        [Fault("POST /api/repos/create", 402, "PRO only")],
        ["clinic/x402", "--space", "clinic/s"],
        OWNER,
        "has to be paid",
    ),
    ([Fault("preupload", 404, headers={"X-Error-Code": "RepoNotFound"})], ["clinic/x404"], OWNER, "it is not there"),
    ([Fault("/commit/", 400, f"no, {OWNER}")], ["clinic/x400"], OWNER, "the Hub refuses (400: no, HF_TOKEN)"),
    ([Fault("/commit/", 409)], ["clinic/x409"], OWNER, "somebody else is changing it at the same time"),
    ([Fault("/commit/", 412)], ["clinic/x412"], OWNER, "it has been changed meanwhile; try again"),
    (
        [Fault("create", 429, headers={"Retry-After": "7"})],
        ["clinic/x"],
        OWNER,
        "too many requests; try again in 7 sec",
    ),
    ([Fault("create", 500)], ["clinic/y500"], OWNER, "the Hub is at fault; try again later (500"),
    ([Fault("validate-yaml", 500)], ["clinic/x500"], OWNER, "the Hub is at fault; try again later (500"),
    ([Fault("validate-yaml", 503)], ["clinic/x503"], OWNER, "the Hub is at fault; try again later (503"),
    ([Fault("PUT /lfs/", 403, times=99)], ["clinic/x403"], OWNER, "the token may not do this"),
    ([Fault("/commit/", cut_upload=1000)], ["clinic/xcut"], OWNER, "the same command goes on from what has arrived"),
]


def test_a_data_set_of_others_is_left_alone_though_its_files_are_named_alike(
    hub, client, model, small_phantom, tmp_path
):
    (tmp_path / "theirs" / "data").mkdir(parents=True)
    (tmp_path / "theirs" / "data" / "train-00000-of-00001.parquet").write_text("theirs")
    (tmp_path / "theirs" / "README.md").write_text("---\ntags: [speech]\n---\nTheirs.\n")
    hub.add("dataset", "clinic/theirs", tmp_path / "theirs")
    told = client.run("push", model, "--repo", "clinic/mine", "--dataset", "clinic/theirs", "--data", small_phantom)
    assert told.code == 1
    assert "it exists and holds something else, data/train-00000-of-00001.parquet for one" in told.line
    assert hub.repository("dataset", "clinic/theirs").read("README.md").decode().endswith("Theirs.\n")


def test_a_space_of_others_is_left_alone_though_it_predicts_too(hub, client, model, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "examples").mkdir(parents=True)
    for name in ("app.py", "predictor.py", "utils.py", "examples/cat.jpg", "requirements.txt"):
        (theirs / name).write_text("theirs")
    repository = hub.add("space", "clinic/theirs", theirs, sdk="gradio")
    told = client.run("push", model, "--repo", "clinic/mine", "--space", "clinic/theirs")
    assert told.code == 1
    assert "space clinic/theirs: it exists and holds something else, app.py for one" in told.line
    assert held(repository) == local_files(theirs)


def test_files_that_others_put_beside_those_of_push_stay(hub, client, model):
    words = ["push", model, "--repo", "clinic/shared", "--space", "clinic/shared"]
    assert client.run(*words).code == 0
    theirs = {"model": ["handler.py", "labels.json", "lora.safetensors", "eval/notes.md"]}
    theirs["space"] = ["languages/fr.toml", "more.py"]
    for kind, names in theirs.items():
        repository = hub.repository(kind, "clinic/shared")
        repository.commit("main", "theirs", {name: repository.keep(b"theirs") for name in names}, [], "clinic")
    assert "nothing has changed since" in client.run(*words).out
    shutil.copy(model / "abstention.safetensors", model / "abstention_onnx_int8.safetensors")
    assert client.run(*words).code == 0
    (model / "abstention_onnx_int8.safetensors").unlink()
    assert client.run(*words).code == 0
    for kind, names in theirs.items():
        files = held(hub.repository(kind, "clinic/shared"))
        assert {name: files[name] for name in names} == dict.fromkeys(names, b"theirs")
        assert "abstention_onnx_int8.safetensors" not in files


@pytest.mark.parametrize(("faults", "words", "token", "message"), FAULTS)
def test_what_goes_wrong_is_one_line_and_nothing_is_half_published(hub, client, model, faults, words, token, message):
    if words == ["clinic/taken"]:
        (client.here / "other").mkdir()
        (client.here / "other" / "tokenizer.json").write_text("{}")
        hub.add("model", "clinic/taken", client.here / "other")
    (model / "eval" / "test_trust.png").write_bytes(os.urandom(100_000))
    hub.faults = list(faults)
    told = client.run("push", model, "--repo", *words, token=token)
    assert told.code == 1
    assert told.err.strip().count("\n") == 0
    assert told.err.startswith("error: ")
    assert message in told.err
    assert OWNER not in told.out + told.err
    assert not [asked for asked in hub.asked if "/commit/" in asked.path and asked.status == 200]
    if faults:
        hub.faults.clear()
        assert client.run("push", model, "--repo", *words).code == 0
        assert held(hub.repository("model", words[0])) == as_pushed(model, words[0])


def test_a_push_goes_on_after_a_break_and_sends_nothing_twice(hub, client, model):
    words, size = ["push", model, "--repo", "clinic/broken"], 3_000_000
    files = [model / "eval" / f"{name}_{end}.png" for name in ("test", "external") for end in ("trust", "performance")]
    for file in files:
        file.write_bytes(os.urandom(size))
    names = [f"/lfs/{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    last = names[-1]
    hub.faults = [Fault(f"PUT {last}", 403, times=9)]
    assert client.run(*words).code == 1
    arrived = {asked.path for asked in hub.asked if asked.method == "PUT" and asked.status == 200}
    assert last not in arrived

    hub.asked.clear()
    hub.faults = [Fault(f"PUT {last}", cut_upload=100_000), Fault("/commit/", 500)]
    assert client.run(*words).code == 1
    sent = {asked.path for asked in hub.asked if asked.method == "PUT"}
    assert sent == set(names) - arrived
    again = hub.sent(f"PUT {last}") - size  # the connection was cut in mid-file, and the client tried once more
    assert 0 < again < size
    assert hub.sent() == again + size * len(sent)

    hub.asked.clear()
    hub.faults.clear()
    assert client.run(*words).code == 0
    assert hub.sent() == 0
    assert held(hub.repository("model", "clinic/broken")) == as_pushed(model, "clinic/broken")


def test_a_model_that_was_fetched_is_there_when_the_hub_is_down(hub, client, model):
    hub.add("model", "clinic/cached", model)
    code = f"import os; os.chdir({str(client.here)!r}); from training.hub import model_folder; "
    client.read(code + "model_folder('clinic/cached')")
    shutil.rmtree(client.here / "models" / "cached")
    down = client.env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    code += "print(model_folder('clinic/cached')); model_folder('clinic/other')"
    told = subprocess.run([sys.executable, "-c", code], env=down, capture_output=True, text=True)
    assert told.stdout.strip() == "models/cached"
    assert "Unreachable: model clinic/other: the connection to http://127.0.0.1:9 failed" in told.stderr
    assert (client.here / "models" / "cached" / "split.csv").is_file()


def test_a_full_disk_is_one_line():
    full = Path("/dev/full")
    with pytest.raises(InputError, match="dataset clinic/x: no space is left"), plainly("dataset clinic/x"):
        full.write_text("x")


def test_pictures_are_sent_when_they_are_known_to_be_synthetic_or_there_are_the_rights(model, tmp_path):
    def left():
        return local_files(model).keys() - push.model_upload(model, "clinic/x", tmp_path).files.keys()

    told = json.loads((model / "eval" / "external.json").read_text())
    assert not left()
    report = (model / "report.html").read_text()
    (model / "report.html").write_text(report.replace(push.SYNTHETIC, ""))
    (model / "eval" / "external.json").write_text(json.dumps(told | {"synthetic": False}))
    assert left() == {"eval/external_gallery.png", "report.html"}
    assert len(push.model_upload(model, "clinic/x", tmp_path, rights=True).files) == len(local_files(model))


def test_of_eval_only_what_the_project_writes_there_is_sent(model, tmp_path):
    mine = {f"eval/{name}" for name in ("notes.md", "ward.jsonl", "ward.parquet", "000001_Doe_John_0.png")}
    for name in mine:
        (model / name).write_text("path\n/scans/doe_john/1.png\n")
    predicted = ["eval/ward.csv", "eval/ward.json", "eval/export_ward.json", "audit.json"]  # as predict and audit do
    for name in predicted:
        (model / name).write_text('{"n": 1}')
    mine |= set(predicted)
    write_card(model)
    assert local_files(model).keys() - push.model_upload(model, "clinic/x", tmp_path).files.keys() == mine
    assert set(repositories.strange_files("model", model)) == mine


def test_images_have_numbers_for_names_once_one_evaluation_is_of_real_ones(hub, client, model):
    words = ["push", model, "--repo", "clinic/named", "--dry-run"]
    assert "numbers for names" not in client.run(*words).out
    told = json.loads((model / "eval" / "external.json").read_text())
    (model / "eval" / "external.json").write_text(json.dumps(told | {"synthetic": False}))
    assert "images and groups have numbers for names in what is sent" in client.run(*words).out


def test_the_space_installs_the_runtimes_that_the_model_was_exported_for(model, tmp_path):
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    required = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    for file, package in ((None, None), ("model_int8.onnx", "onnxruntime"), ("openvino_model.xml", "openvino")):
        if file:
            (model / file).write_bytes(b"")
            required.append(next(line for line in pinned if line.startswith(f"{package}==")))
        upload = push.space_upload(push.model_upload(model, "clinic/x", tmp_path), "clinic/page", tmp_path)
        assert upload.files["requirements.txt"].read_text().splitlines() == required


def test_the_space_of_a_network_of_timm_installs_timm_as_it_is_here(model, tmp_path, monkeypatch):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "timm_wrapper"}))
    (tmp_path / "timm-1.2.3.dist-info").mkdir()
    (tmp_path / "timm-1.2.3.dist-info" / "METADATA").write_text("Name: timm\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    upload = push.space_upload(push.model_upload(model, "clinic/x", tmp_path), "clinic/page", tmp_path)
    required = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    assert upload.files["requirements.txt"].read_text().splitlines() == [*required, "timm==1.2.3"]


def test_the_space_of_a_network_of_timm_installs_some_timm_where_none_is_here(model, tmp_path):
    if find_spec("timm"):
        pytest.skip("timm is installed")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "timm_wrapper"}))
    upload = push.space_upload(push.model_upload(model, "clinic/x", tmp_path), "clinic/page", tmp_path)
    assert upload.files["requirements.txt"].read_text().splitlines()[-1] == "timm"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval/training.json", None, r"found no model folder \(eval/training.json is missing\)"),
        ("eval/test.json", "{broken", "eval/test.json: no JSON that can be read"),
        ("eval/training.json", "[]", "eval/training.json: found no names and values; mend it"),
        ("recipe.yaml", "a: [\n", "recipe.yaml: no YAML that can be read"),
        ("README.md", "---\na: [\n---\n", "README.md: no YAML that can be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_sent(model, name, content, message):
    (model / name).write_text(content) if content else (model / name).unlink()
    with pytest.raises(InputError, match=message) as refusal:
        push.main([str(model), "--repo", "clinic/x", "--space", "clinic/y"])
    assert "\n" not in str(refusal.value)

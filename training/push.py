"""The verb push: a model folder, its data set and its page as repositories of the Hub.

chest-opacity push models/phantom --repo user/name --dry-run
chest-opacity push models/phantom --repo user/name --private --tag v1
chest-opacity push models/default --repo user/name --space user/page --dataset user/data --data FOLDER

Each repository gets one commit, of what has changed; none when nothing has. The token is HF_TOKEN, or what
`hf auth login` has kept. What was sent before a break is not sent again.
"""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import SpaceCard, constants
from huggingface_hub.repocard import metadata_load

import space
from space.errors import InputError, some_of
from training import hub, repositories
from training.card import find_template
from training.cli import Parser, run
from training.outputs import read_again, require_model_folder, writing
from training.repositories import Plan, Upload

NEEDED = (
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    *("README.md", "recipe.yaml", "split.csv", "eval/training.json"),
)
PAGE = Path(space.__file__).parent
SHOWING = ("eval/samples.png", "eval/*_gallery.png", "report.html")  # pictures with images of the data in them
RUNTIMES = {"onnxruntime": ("model*.onnx",), "openvino": ("openvino_model*.xml",)}  # packages, for files of export
EXAMPLE = re.compile(r'(?<=pipeline\("image-classification", model=)"[^"\n]*"')  # of use, in the card: what it loads
SYNTHETIC = '<meta name="synthetic" content="yes">'  # in report.html, where none of its images are real


def model_upload(folder: Path, repo: str, work: Path, rights: bool = False) -> Upload:
    """A model folder as it is, without what does not belong to one; raises InputError when it is not whole.

    Its card, written into `work`, loads `repo` in its example of use, which here loads the folder. Of a model of real
    images, or measured on such, other files too are written there: those that name images, groups or folders.
    Pictures that show images of the data stay here, unless those are known to be synthetic or `rights` to share them
    are claimed.
    """
    require_model_folder(folder, *NEEDED)
    for name in ("config.json", "recipe.yaml", "README.md"):
        read_again(folder / name)
    for told in sorted((folder / "eval").glob("*.json")):
        read_again(told)
    files = repositories.own_files("model", folder)
    shown = [] if rights else [name for name in files if _shows_people(name, folder)]
    files = {name: path for name, path in files.items() if name not in shown}
    with writing(work):
        if not _is_synthetic(folder):
            from training.nameless import without_names  # slow to import

            files = without_names(files, work)
        card = EXAMPLE.sub(f'"{repo}"', files["README.md"].read_text())
        (work / "README.md").write_text(card)
    return Upload("model", repo, files | {"README.md": work / "README.md"})


def space_upload(model: Upload, repo: str, work: Path, dataset: str | None = None) -> Upload:
    """The page for a model of the Hub; its card, and its requirements with the runtimes that the model was exported
    for and with timm where its network is of that, are written into `work`."""
    card, told = SpaceCard.load(PAGE / "README.md"), read_again(model.files["README.md"])
    card.data.title = f"Chest opacity: {model.repo.partition('/')[2]}"
    card.data.license = told.get("license")
    card.data.models = [model.repo]
    card.data.datasets = [dataset] if dataset else None
    (work / "README.md").write_text(str(card))
    required = (PAGE / "requirements.txt").read_text() + _runtimes_for(model) + _timm_for(model)
    (work / "requirements.txt").write_text(required)
    written = {name: work / name for name in ("README.md", "requirements.txt")}
    return Upload("space", repo, repositories.own_files("space", PAGE) | written)


def data_upload(model: Path, data: str, repo: str, work: Path, rights: bool) -> Upload:
    """DATA with the split of a model, as Parquet files and a card in `work`."""
    from training.publishable import read_publishable, write_data_card, write_publishable  # slow to import

    parts = read_publishable(data, model, rights)
    with writing(work):
        files = write_publishable(parts, work)
        write_data_card(parts, repo, model, work / "README.md")
    return Upload("dataset", repo, files | {"README.md": work / "README.md"})


def push(
    uploads: Sequence[Upload],
    message: str,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
) -> None:
    """Make repositories hold what they are to hold, in this order, and print what is sent.

    private: make those private that are new; revision: commit to this branch; tag: name the commits. A Space is told
    by its variable MODEL_ID which model to show. Raises InputError before anything is sent when one of the repositories
    cannot be written to, holds something else, or holds an evaluation of this very model that is not here, or is of
    other images here.
    """
    plans = [_plan(upload, revision, private, dry_run) for upload in uploads]
    tagged = [plan for plan in plans if tag and plan.upload.kind != "space"]
    known = {plan.upload: repositories.tags(plan.upload).get(tag) if plan.head else None for plan in tagged}
    for plan in tagged:
        if known[plan.upload] and (known[plan.upload] != plan.head or not plan.empty):
            raise InputError(f"{plan.upload}: the tag {tag} names another commit already; choose another")
    for plan in plans:
        _require_evaluations(plan)
        print(plan)
    if dry_run:
        print("nothing was sent (--dry-run)")
        return
    for plan in sorted(plans, key=lambda plan: plan.upload.kind != "space"):  # a Space may have to be paid for
        repositories.create(plan, revision, private, **_settings(plan.upload))
    for plan in plans:
        if plan.upload.kind == "space" and plan.head and not plan.empty:
            repositories.set_variables(plan.upload, _variables(plan.upload))
        oid = repositories.commit(plan, message, revision)
        if plan in tagged and not known[plan.upload]:
            repositories.add_tag(plan.upload, tag, oid)
        done = "nothing has changed since" if plan.empty else "now at"
        print(f"{plan.upload.kind}: {_address(plan.upload)}, {done} commit {oid[:7]}")


def _plan(upload: Upload, revision: str | None, private: bool, dry_run: bool) -> Plan:
    try:
        return repositories.survey(upload, revision, private)
    except hub.Unreachable as error:
        if not dry_run:
            raise
        print(f"{error}; this is as if nothing were there:")
        return repositories.fresh(upload, revision)


def _require_evaluations(plan: Plan) -> None:
    """Raise InputError when what somebody else, or this model elsewhere, was found worth would be deleted or replaced.

    One of the same name is replaced by one of the same images, or of more.
    """
    if plan.upload.kind != "model" or "model.safetensors" in plan.added + plan.changed:
        return
    others = [name for name in plan.deleted if repositories.matches(name, ("eval/*.json",))]
    if others:
        raise InputError(
            f"{plan.upload}: {others[0]} is there and not here; put it here (hf download {plan.upload.repo} --include "
            f"'{others[0].removesuffix('.json')}*' --local-dir FOLDER) and evaluate again, or delete it there"
        )
    for name in (name for name in plan.changed if repositories.matches(name, ("eval/*.json",))):
        table = f"{name.removesuffix('.json')}.csv"
        changed = table in plan.changed and _pixels(repositories.fetch(plan, table)) - _pixels(plan.upload.files[table])
        if table in plan.added or changed:
            raise InputError(
                f"{plan.upload}: {name} is of other images there; evaluate with another --name, or delete it there"
            )


def _pixels(table: Path) -> set[str | None]:
    """The hashes of the images that a table of an evaluation tells of."""
    with open(table, newline="", encoding="utf-8", errors="replace") as rows:
        return {row.get("pixels") for row in csv.DictReader(rows)}


def _shows_people(name: str, folder: Path) -> bool:
    if not repositories.matches(name, SHOWING):
        return False
    if name == "report.html":
        return SYNTHETIC.encode() not in (folder / name).read_bytes()
    of = "training" if name == "eval/samples.png" else Path(name).stem.removesuffix("_gallery")
    return read_again(folder / "eval" / f"{of}.json").get("synthetic") is not True


def _runtimes_for(model: Upload) -> str:
    """A line of requirements.txt for each runtime that can run something in a model repository."""
    needed = [
        name for name, files in RUNTIMES.items() if any(repositories.matches(file, files) for file in model.files)
    ]
    pinned = find_template("constraints.txt").read_text().splitlines(keepends=True)
    return "".join(line for line in pinned if line.partition("==")[0] in needed)


def _timm_for(model: Upload) -> str:
    """A line of requirements.txt where the network is of timm, with the version that is installed here, if one is."""
    if read_again(model.files["config.json"]).get("model_type") != "timm_wrapper":
        return ""
    try:
        return f"timm=={version('timm')}\n"
    except PackageNotFoundError:
        return "timm\n"


def _is_synthetic(folder: Path) -> bool:
    """Whether a model is known to have learned from no real image, and has been measured on none."""
    known = read_again(folder / "eval" / "training.json").get("synthetic") is True
    return known and all(read_again(told).get("synthetic", True) for told in (folder / "eval").glob("*.json"))


def _variables(upload: Upload) -> dict[str, str]:
    return {"MODEL_ID": metadata_load(upload.files["README.md"])["models"][0]}


def _settings(upload: Upload) -> dict:
    if upload.kind != "space":
        return {}
    return {"space_sdk": "gradio", "space_variables": [{"key": k, "value": v} for k, v in _variables(upload).items()]}


def _address(upload: Upload) -> str:
    return f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(upload.kind, '')}{upload.repo}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity push", description="Publish a model folder, its data set and its page.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder")
    parser.add_argument("--repo", required=True, metavar="user/name", help="the model repository")
    parser.add_argument("--space", metavar="user/name", help="the page for the model too, as a Space")
    parser.add_argument("--dataset", metavar="user/name", help="--data too, as a data set with the model's split")
    parser.add_argument("--data", metavar="DATA", help="what the model was trained with")
    parser.add_argument("--private", action="store_true", help="make those that are new private")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, made when it is not there")
    parser.add_argument("--tag", help="name the commits of the model and the data set")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    parser.add_argument(
        "--i-have-the-rights",
        action="store_true",
        help="share images whose licence is not known, or does not allow it, and pictures that show images of the data",
    )
    args = parser.parse_args(argv)
    if bool(args.dataset) != bool(args.data):
        raise InputError("--dataset and --data go together: where the data set is to go, and what it is")
    if args.space and args.revision:
        raise InputError("--space shows the model's main branch; push to --revision without it")
    for name in filter(None, (args.repo, args.space, args.dataset)):
        hub.check_name(name)
    with tempfile.TemporaryDirectory(prefix="chest-opacity-") as work:
        (card_work := Path(work, "model")).mkdir()
        uploads = [model := model_upload(args.model, args.repo, card_work, args.i_have_the_rights)]
        if not args.dry_run:
            hub.require_token()
        if args.dataset:
            (data_work := Path(work, "data_set")).mkdir()
            uploads.insert(0, data_upload(args.model, args.data, args.dataset, data_work, args.i_have_the_rights))
        if args.space:
            (page := Path(work, "space")).mkdir()
            uploads.append(space_upload(model, args.space, page, args.dataset))
        push(uploads, f"Push {args.model.resolve().name}", args.private, args.revision, args.tag, args.dry_run)
    if left := repositories.strange_files("model", args.model):
        print(f"not part of a model folder, so not sent: {some_of(left)}")
    if shown := sorted(repositories.own_files("model", args.model).keys() - model.files.keys()):
        print(f"not sent, for images of the data are to be seen in it: {', '.join(shown)}; see --i-have-the-rights")
    if not _is_synthetic(args.model):
        print("images and groups have numbers for names in what is sent, and folders are not named")
    if args.space and args.private:
        print("a Space sees a private model only with a token: give it one that may read, as its secret HF_TOKEN")


if __name__ == "__main__":
    run(main)

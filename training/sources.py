"""DATA: what a data set can be read from, and the rows that it becomes.

    FOLDER                       class folders, or metadata.csv; images, DICOM files and clips
    TABLE.csv, TABLE.parquet     the columns path (or file_name) and label, and if known group, site, split
    user/name                    a data set of the Hub
    phantom                      the embedded simulation

Options follow after a question mark: `FOLDER?frames=16` (frames of a clip or of a DICOM file with many),
`user/name?config=small&split=train&revision=main&streaming=true`, `phantom?seed=1` (other patients),
`phantom?sites=120` (of sites drawn by chance, not A and B).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISDIR
from urllib.parse import parse_qsl

import datasets
import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.exceptions import DatasetGenerationError
from filelock import FileLock

from space import clips
from space.archives import KNOWN, is_archive
from space.clips import import_av
from space.dicom import DicomFile, is_dicom
from space.errors import InputError, some_of
from training import anatomy, phantom, phantom_sites, ultrasound
from training.groups import is_alone, merge
from training.hub_data import read_hub
from training.listings import image_files, is_normal, is_passed_over, is_told, read_listing, walk
from training.outputs import new_folder

UNLABELLED = -1  # the convention of `datasets` for a ClassLabel that is not known
TABLES = frozenset({".csv", ".parquet"})
FRAMES = 8  # of a clip, where nothing else is said
IMAGES_A_GROUP = 25  # in memory at a time; 2 GiB, the most that an Arrow array holds, are 26 of the largest there are
PATIENT = "PatientID of the DICOM file"  # a column on the way to the groups
# Ids that anonymisers write for everybody; anon-1 is somebody's, and 0 to 000 may be the first of numbered patients.
NOBODY = re.compile(r"anon(ym(ous|i[sz]ed)?)?|de[ _-]?identified|unknown|none|test|0{4,}|x+", re.IGNORECASE)
DOCUMENTS = {".txt", ".md", ".html", ".pdf", ".doc", ".docx", ".rtf", ".csv", ".tsv", ".xls", ".xlsx", ".parquet"}
DOCUMENTS |= {".json", ".xml", ".yaml", ".yml", ".db", ".ini", ".log", ".py", ".sh", ".ipynb", ".rst", ".md5", ".zip"}
MASKS = re.compile(r"(.*[ _-]|.*[a-z](?=M))?[Mm](?i:asks?)")  # names of masks and of their folders
DECODERS = {"av", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm"}
OPTIONS = {"files": {"frames"}, "hub": {"config", "split", "revision", "streaming"}, "phantom": {"seed", "sites"}}


def load_data(source: str | Path, labels: list[str] | None = None) -> Dataset:
    """Read DATA as rows with the columns image, label, group, site, path, and as text whatever else is known of them.

    labels: the class names in the order wanted; by default in that of `normal_first`. label is a ClassLabel, UNLABELLED
    where it is not known; path is relative to the folder or table, with #NUMBER for a frame of a clip; group is the
    patient or clip, or the path itself where none is known; mask, where a folder with a table has masks/ with the names
    of images/, is the file of an image's mask, or "". Images stay on disk until they are looked at. Raises InputError
    when DATA cannot be taken as it is.
    """
    datasets.disable_progress_bars()
    place, options = _parse(str(source))
    if folder := find_phantom(str(source)):
        rows = _read_files(folder, FRAMES)
    elif os.path.isdir(place) or Path(place).suffix.lower() in TABLES:
        _check_options(source, options, "files")
        rows = _read_files(Path(place), _number("frames", options.get("frames", FRAMES)))
    elif is_hub_id(place):
        _check_options(source, options, "hub")
        rows = read_hub(place, options)
    else:
        found = "no table that can be read" if os.path.isfile(place) else "no such folder"
        raise InputError(
            f"{place or 'an empty DATA'}: {found}; expected an image folder, a .csv or .parquet table, "
            "user/name on the Hub, or phantom"
        )
    return _with_class_labels(rows, labels, place)


def find_phantom(source: str) -> Path | None:
    """The folder of `phantom`, with its options or without; None of other DATA."""
    if not is_phantom(source):
        return None
    _, options = _parse(source)
    _check_options(source, options, "phantom")
    return phantom_folder(**{name: _number(name, text, 0 if name == "seed" else 1) for name, text in options.items()})


def phantom_folder(seed: int = 0, sites: int | None = None) -> Path:
    """The folder of the phantom, or of that many drawn sites, in the cache of `datasets`; made when it is not there."""
    which = f"{f'seed-{seed}-' if seed else ''}{f'{sites}-sites-' if sites else ''}"
    folder = Path(datasets.config.HF_DATASETS_CACHE) / f"chest-opacity-phantom-{which}{phantom_version()}"
    with _writing_cache():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with new_folder(folder) as work:
                    phantom.write_phantom(work, seed, sites=sites)
    return folder


@contextmanager
def _writing_cache() -> Iterator[None]:
    """What the system says against writing the cache of `datasets` becomes one line."""
    try:
        yield
    except (OSError, DatasetGenerationError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        told = " ".join(str(reason).split())
        raise InputError(
            f"cannot write the cache {datasets.config.HF_DATASETS_CACHE}: {told}; set HF_DATASETS_CACHE to a folder "
            "that can be written and has room"
        ) from error


def phantom_version() -> str:
    """Twelve hex digits that change with what the phantom is drawn by."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (anatomy, phantom, phantom_sites, ultrasound))
    return hashlib.sha256(code).hexdigest()[:12]


def is_phantom(source: str) -> bool:
    """Whether DATA is the embedded simulation, with options or without."""
    return _parse(source)[0] == "phantom"


def load_from_hub(source: str) -> Dataset:
    """A data set of the Hub, `user/name?...`, as rows of image, group and path; it needs no labels."""
    place, options = _parse(source)
    _check_options(source, options, "hub")
    return read_hub(place, options, labelled=False).select_columns(["image", "group", "path"])


def require_sites(sites: Sequence[str] | None, *data: Dataset) -> None:
    """Raise InputError when one of the sites is in none of the data sets."""
    known = sorted(set().union(*(rows.unique("site") for rows in data)) - {""})
    if strange := [site for site in sites or () if site not in known]:
        raise InputError(f"found no site {strange[0]}; the sites are {', '.join(known) or 'not recorded'}")


def column(rows: Dataset, name: str) -> list[str]:
    """A column of text, empty texts where there is none."""
    return list(rows[name]) if name in rows.column_names else [""] * len(rows)


def all_synthetic(rows: Dataset) -> bool:
    """Whether it is known of every image that it shows no person."""
    return set(column(rows, "synthetic")) == {"yes"}


def normal_first(names: Iterable[str]) -> list[str]:
    """Class names in their usual order: normal first, then other words for it (NORMAL), then what is called no or non-
    something, then the others by name."""
    none = re.compile("non?[ _-]", re.IGNORECASE)
    return sorted(names, key=lambda name: (name.lower() != "normal", not is_normal(name), not none.match(name), name))


def is_hub_id(source: str) -> bool:
    """Whether a text can only be a repository of the Hub, with or without options, and not the name of a file."""
    place, _ = _parse(source)
    file = is_archive(place) or Path(place).suffix.lower() in KNOWN | TABLES
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", place)) and not file and not os.path.isdir(Path(place).parent)


def unlisted_files(source: str | Path) -> list[str]:
    """Image files of a folder that its metadata.csv does not name, and which are therefore no rows; masks/ aside."""
    folder = Path(_parse(str(source))[0])
    if not (folder / "metadata.csv").is_file():
        return []
    listed = {Path(os.path.relpath(folder / row["path"], folder)).as_posix() for row in read_listing(folder)}
    paths = (file.relative_to(folder) for file in image_files(folder))
    return [path.as_posix() for path in paths if path.as_posix() not in listed and path.parts[0] != "masks"]


def unread_files(source: str | Path) -> list[str]:
    """Files among class folders that are no images which can be read, and no DOCUMENTS: other clips or volumes, say."""
    folder = Path(_parse(str(source))[0])
    if is_told(folder):
        return []
    read = set(image_files(folder))
    paths = (Path(here, name) for here, files in walk(folder) for name in sorted(files) if not is_passed_over(name))
    unread = (path for path in paths if path not in read and path.suffix.lower() not in {"", *DOCUMENTS})
    return [path.relative_to(folder).as_posix() for path in unread]


def _parse(source: str) -> tuple[str, dict[str, str]]:
    if os.path.exists(source):
        return source, {}
    place, _, options = source.partition("?")
    return place, dict(parse_qsl(options, keep_blank_values=True))


def _check_options(source: str | Path, options: dict[str, str], kind: str) -> None:
    for name in options.keys() - OPTIONS[kind]:
        known = ", ".join(sorted(OPTIONS[kind])) or "none"
        raise InputError(f"{source}: unknown option {name}; expected {known}")


def _number(option: str, text: str | int, least: int = 1) -> int:
    if not str(text).isdecimal() or int(text) < least:
        raise InputError(f"{option}={text}: expected a number of at least {least}")
    return int(text)


def _read_files(place: Path, frames: int) -> Dataset:
    """The rows of a folder or table, on disk; label is still text."""
    columns, digest = _survey(place)
    with _writing_cache():
        rows = Dataset.from_generator(
            _rows,
            features=Features({"image": Image()} | {name: Value("string") for name in columns}),
            gen_kwargs={"place": str(place.absolute()), "frames": frames, "columns": tuple(columns), "digest": digest},
            writer_batch_size=IMAGES_A_GROUP if PATIENT in columns else None,
        )
    return _by_patient(rows, is_told(place)) if PATIENT in columns else rows


def _by_patient(rows: Dataset, told: bool) -> Dataset:
    """The rows with groups by the patient's id of DICOM files: it joins folders, and is the group of files without one.

    told: groups are a table's, and stay as they are. An id that all DICOM files have, or one of NOBODY, as anonymisers
    write them, tells nobody from another, and is as none.
    """
    found, groups = list(rows[PATIENT]), list(rows["group"])
    rows = rows.remove_columns(PATIENT)
    ids = ["" if NOBODY.fullmatch(patient) else patient for patient in found]
    if len(set(found) - {""}) < 2 or not any(ids):
        return rows
    known = zip(ids, groups, rows["path"], strict=True)
    groups = [patient if patient and is_alone(path, group) else group for patient, group, path in known]
    if not told:
        first = {}
        pairs = [(first.setdefault(patient, number), number) for number, patient in enumerate(ids) if patient]
        groups = merge(groups, np.array(pairs))
    return rows.remove_columns("group").add_column("group", groups, feature=Value("string"))


def _is_mask(path: str, label: str) -> bool:
    """Whether a file is named as a mask, or lies in a folder of masks; a class may be called with_mask."""
    inside = [name for name in Path(path).with_suffix("").parts if name != label]
    return label.lower() in {"mask", "masks"} or any(map(MASKS.fullmatch, inside))


def _survey(place: Path) -> tuple[list[str], str]:
    """Look through a listing without keeping it: its columns, and a digest that changes when any file does."""
    root, told = place if place.is_dir() else place.parent, is_told(place)
    digest, columns, number, seen, of_many = hashlib.sha256(), [], 0, set(), False
    doubled, missing, masks = [], [], []
    for row in read_listing(place):
        path, number = row["path"], number + 1
        columns = columns or list(row)
        if not told and _is_mask(path, row["label"]):
            masks.append(path)
        if hash(path) in seen:
            doubled.append(path)
        seen.add(hash(path))
        try:
            state = os.stat(root / path.encode().decode())
            if S_ISDIR(state.st_mode):
                raise IsADirectoryError
        except UnicodeEncodeError:
            raise InputError(f"{place}: found a file name that is not UTF-8, {path!r}; rename it") from None
        except (OSError, ValueError):  # the latter of a NUL, which no name can hold
            missing.append(path)
            continue
        if Path(path).suffix.lower() in clips.SUFFIXES:
            import_av()
        dicom = is_dicom(root / path)
        if dicom and find_spec("pydicom") is None:
            raise InputError("reading DICOM needs pydicom: pip install pydicom")
        of_many = of_many or dicom or Path(path).suffix.lower() in clips.SUFFIXES
        digest.update(f"{row}{state.st_size}{state.st_mtime_ns}{state.st_ctime_ns}".encode())
    if not number:
        raise InputError(f"{place}: found no images; expected a folder for each class, or a table with a row for each")
    if masks:
        raise InputError(
            f"{place}: found {len(masks)} masks, {masks[0]} for one; expected images alone in folders of "
            "classes; move the masks away, or list the images in metadata.csv"
        )
    if doubled:
        raise InputError(f"{place}: found {len(doubled)} file names twice, {doubled[0]} for one; name each once")
    if missing:
        raise InputError(
            f"{place}: {len(missing)} of {number} files do not exist, {root / missing[0]} for one; expected paths from "
            "the table's own folder on, with / in them, or whole ones"
        )
    columns += ["burned_in"] * (of_many and "burned_in" not in columns) + [PATIENT] * of_many
    if told and (root / "masks").is_dir():
        columns.append("mask")
        digest.update(str(sorted(mask.relative_to(root) for mask in (root / "masks").rglob("*"))).encode())
    if of_many:  # another version, or another decoder, may give other frames, or such where there were none
        found = sorted(f"{each.name} {each.version}" for each in distributions() if each.name in DECODERS)
        digest.update(str(found).encode())
        space = Path(clips.__file__).parent
        for code in (Path(__file__), space / "clips.py", space / "dicom.py", space / "images.py"):
            digest.update(code.read_bytes())
    return columns, digest.hexdigest()


def _rows(place: str, frames: int, columns: tuple[str, ...], digest: str) -> Iterator[dict]:
    """Rows of a listing; clips and DICOM files as their frames in PNG bytes, with nothing else of the file."""
    root = Path(place) if Path(place).is_dir() else Path(place).parent
    for row in read_listing(Path(place)):
        file = root / row["path"]
        row = dict.fromkeys(columns, "") | row
        inside = os.path.relpath(file, root)  # the path in the table may be an absolute one
        if "mask" in columns and (mask := root / "masks" / inside.removeprefix("images/")).is_file():
            row["mask"] = str(mask)
        row["group"] = row["group"] or row["path"]
        try:
            if file.suffix.lower() in clips.SUFFIXES:
                pictures = clips.read_frames(file, frames)
            elif is_dicom(file):
                dicom = DicomFile(file)
                pictures = dicom.spread(frames)
                row |= {"burned_in": dicom.burned_in, PATIENT: dicom.patient}
            else:
                pictures = []
        except InputError:  # whoever looks at the image will say why
            pictures = []
        if not pictures:
            yield {"image": {"path": str(file), "bytes": None}, **row}
        for number, picture in pictures:
            path = f"{row['path']}#{number}" if len(pictures) > 1 else row["path"]
            image = {"path": None, "bytes": as_png(picture)}
            yield {"image": image, **row, "path": path}


def as_png(picture: PIL.Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _with_class_labels(rows: Dataset, wanted: list[str] | None, source: str) -> Dataset:
    found = rows["label"]
    names = normal_first(set(found) - {""})
    if wanted is not None:
        strange = [name for name in names if name not in wanted]
        if strange:
            raise InputError(f"{source}: found the classes {some_of(names)}; expected only {', '.join(wanted)}")
        names = list(wanted)
    index = {name: number for number, name in enumerate(names)} | {"": UNLABELLED}
    others = [name for name in rows.column_names if name not in {"image", "label", "group", "site", "path"}]
    labelled = rows.remove_columns("label").add_column(
        "label", [index[name] for name in found], feature=ClassLabel(names=names)
    )
    return labelled.select_columns(["image", "label", "group", "site", "path", *others])

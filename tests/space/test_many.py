import csv
import tarfile
import tracemalloc
import weakref
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from gradio import FileData
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import BitConfig

from space import app, clips, many, stage
from space.errors import InputError
from space.page import Page
from space.predictor import BATCH, Answer, Predictor
from space.rows import row as answer_row
from space.texts import Texts
from tests.clips import write_clip
from tests.dicom import write_dicom
from tests.fits import GROUP_NORM, save_base
from tests.images import speckle, write_table

LABELS = ["normal", "sick"]


def row(path, prediction, probability, error=""):
    told = {"path": path, "prediction": prediction, "abstained": not prediction, "error": error}
    return told | {"probability_normal": 1 - probability, "probability_sick": probability}


@pytest.fixture
def scans(tmp_path):
    """A picture, a broken file, an archive with a picture and a clip."""
    Image.fromarray(speckle(0)).save(tmp_path / "one.png")
    (tmp_path / "broken.png").write_text("no image")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(tmp_path / "one.png", "deep/two.png")
        archive.write(write_clip(tmp_path / "clip.mp4", 9), "clip.mp4")
    return [(str(tmp_path / name), name) for name in ("one.png", "broken.png", "scans.zip")]


def test_archives_count_as_what_they_hold_and_broken_files_are_listed(model, scans):
    found = list(many.examine(model.batches, many.named_files(scans)))
    assert [each.row["path"] for each in found] == ["one.png", "broken.png", "clip.mp4", "deep/two.png"]
    assert [bool(each.row["error"]) for each in found] == [False, True, False, False]
    assert [each.picture is None for each in found] == [False, True, False, False]
    assert found[0].row["probability_sick"] == found[3].row["probability_sick"]


def test_an_archive_without_pictures_has_that_reason(model, tmp_path):
    for name in ("empty.zip", "text.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            if name == "text.zip":
                archive.writestr("readme.txt", "text")
        (found,) = many.examine(model.batches, many.named_files([(str(tmp_path / name), name)]))
        assert (found.row["path"], found.row["error"]) == (name, "the archive holds no image, DICOM file or clip")


def test_an_upload_that_was_deleted_is_to_be_given_again(model, tmp_path):
    gone = [(str(tmp_path / name), name) for name in ("one.png", "clip.mp4", "scan.dcm", "scans.zip")]
    found = many.examine(model.batches, many.named_files(gone))
    assert {each.row["error"] for each in found} == {
        "the file was deleted, as uploads are after 10 minutes: give it again"
    }
    with pytest.raises(InputError, match="the file of labels was deleted, as uploads are after 10 minutes"):
        many.read_labels(tmp_path / "labels.csv", LABELS)


def test_what_is_over_the_limit_is_said_and_nothing_is_lost(model, scans, monkeypatch):
    monkeypatch.setattr(many, "MOST_FILES", 2)
    found = list(many.examine(model.batches, many.named_files(scans), pictures=0))
    assert len(found) == 3
    assert "left out" in found[2].row["error"]
    assert all(each.picture is None for each in found)
    told = stage.summary(found, LABELS, None, "", Texts())
    assert "2 files: " in told
    assert f"Not all was looked at: see the row of {found[2].row['path']}, where" in told


def test_an_archive_that_breaks_off_is_said_to_be_left_out_from_there_on(model, tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        Image.fromarray(speckle(1)).save(tmp_path / "1.png")
        archive.add(tmp_path / "1.png", "1.png")
    whole = (tmp_path / "some.tar").read_bytes()
    (tmp_path / "some.tar").write_bytes(whole[: whole.rindex(b"IEND") + 8].ljust(20 * 512 * 8, b"x"))
    found = list(many.examine(model.batches, many.named_files([(str(tmp_path / "some.tar"), "some.tar")])))
    assert [(each.row["path"], each.rest) for each in found] == [("1.png", False), ("some.tar", True)]
    assert found[1].row["error"].startswith("what follows in it is left out: the archive is broken")


def test_of_large_files_fewer_are_in_memory_at_once_and_all_are_answered(model):
    files = ((f"{n}.png", {"path": f"{n}.png", "bytes": bytes(48 << 20)}) for n in range(2 * BATCH + 1))
    tracemalloc.start()
    found = [each.row["path"] for each in many.examine(model.batches, files)]
    assert tracemalloc.get_traced_memory()[1] < 256 << 20
    tracemalloc.stop()
    assert found == [f"{n}.png" for n in range(2 * BATCH + 1)]


def test_a_table_starts_no_formula_in_a_spreadsheet():
    text = many.to_csv([row("=1+1.png", "sick", 0.9), row("a,b.png", "sick", 0.9)])
    assert [each[0] for each in csv.reader(text.splitlines())] == ["path", "'=1+1.png", "a,b.png"]


def test_a_row_has_probabilities_as_they_are_and_a_table_to_read_has_six_digits_of_them(model):
    told = answer_row(model.predictor, "a.png", Answer(np.array([1 - 2e-9, 2e-9]), 0.5))
    assert told["probability_sick"] == 2e-9
    assert [line.split(",")[3:5] for line in many.to_csv([told]).splitlines()[1:]] == [["1.0", "0.0"]]
    assert many.to_csv([told | {"probability_sick": 1 / 3}]).count(",0.333333,") == 1


def test_the_time_line_of_three_classes_is_of_the_one_that_the_clip_is_called(tmp_path):
    names = dict(enumerate(["normal", "bacterial", "viral"]))
    base = save_base(tmp_path, BitConfig(**GROUP_NORM.to_dict() | {"id2label": names}))
    predictor = Predictor(base)
    predictor.model.classifier[-1].bias.data[1] += 100
    images = [Image.fromarray(speckle(seed)) for seed in range(2)]
    answers = [predictor.answer([image], predictor.methods[0])[0] for image in images]
    said = stage.clip_stage(predictor, list(enumerate(images)), answers, Texts())
    assert "the more bacterial" in said
    assert said.count("Frame 0: bacterial ") == said.count("Frame 0: ") > 0


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_no_part_of_a_name_starts_a_formula_where_a_spreadsheet_parts_lines_at_another_sign(delimiter):
    text = many.to_csv([row(f"a{delimiter}{start}1.png", "sick", 0.9) for start in "=+-@"])
    cells = [cell for line in csv.reader(text.splitlines(), delimiter=delimiter) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_figures_are_those_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 2, 60), rng.random(60).round(1)
    rows = [row(f"scans/{i}.png", LABELS[int(score >= 0.5)], score) for i, score in enumerate(scores)]
    rows += [row("broken.png", "", 0, "it is no image"), row("unlike.png", "", 0.7), row("other.png", "sick", 0.8)]
    named = [[f"{i}.png", LABELS[label]] for i, label in enumerate(truth)]
    write_table(tmp_path / "labels.csv", ["path", "label"], *named, ["broken.png", "sick"], ["unlike.png", "sick"])
    agreed = many.agreement(rows, LABELS, many.read_labels(tmp_path / "labels.csv", LABELS))
    assert agreed.auc == pytest.approx(roc_auc_score([*truth, 1], [*scores, 0.7]))
    assert sum(agreed.counts.values()) == 62
    assert agreed.counts["sick", ""] == 2
    assert agreed.counts["sick", "sick"] == int(((scores >= 0.5) & (truth == 1)).sum())


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["name", "label"], [["a.png", "sick"]], "columns path and label"),
        (["path", "label"], [["other.png", "sick"]], "no true label was found"),
        (["path", "label"], [["a.png", "ill"]], "the model knows normal, sick"),
        (["path", "label"], [["a.png", "sick"], ["a.png", "normal"]], "two labels for a.png"),
        (
            ["path", "label"],
            [["x/a.png", "sick"], ["y/a.png", "normal"]],
            "several files or labels have the name a.png",
        ),
        (
            ["path", "label"],
            [["x/a.png", "sick"], ["y/a.png", ""]],
            "several files or labels have the name a.png",
        ),
        (["path", "label"], [["b.png", "sick"]], "several files or labels have the name x/b.png"),
        (["path", "label"], [["b.png", ""]], "no true label was found"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(tmp_path, columns, rows, message):
    write_table(tmp_path / "labels.csv", columns, *rows)
    with pytest.raises(InputError, match=message):
        rows = [row(path, "sick", 0.9) for path in ("a.png", "x/b.png", "y/b.png")]
        many.agreement(rows, LABELS, many.read_labels(tmp_path / "labels.csv", LABELS))


@pytest.mark.parametrize("text", ["scans\\a.png,sick\n", "a.png,sick,\n", "scans/a.png,sick,looks odd\n"])
def test_labels_as_other_programs_write_them_are_found(tmp_path, text):
    (tmp_path / "labels.csv").write_text(f"path,label\n{text}")
    truth = many.read_labels(tmp_path / "labels.csv", LABELS)
    assert many.agreement([row("a.png", "sick", 0.9)], LABELS, truth).counts == {("sick", "sick"): 1}


@pytest.mark.parametrize(
    "text",
    ["File_Name,Label\na.png,sick\n", "\ufeffpath;label;dose\na.png;sick;1,5\n", '\npath, label\na.png, "sick"\n'],
)
def test_labels_as_spreadsheets_write_them_are_found(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    assert many.read_labels(tmp_path / "labels.csv", LABELS) == {"a.png": "sick"}


def test_names_that_repeat_in_several_folders_are_told_apart_by_these(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "path,label\nnormal/1.png, normal\nnormal/2.png,normal \n"
        " data/sick/1.png,sick\nsick/2.png,\nelsewhere/3.png,sick\n"
    )
    truth = many.read_labels(tmp_path / "labels.csv", LABELS)
    rows = [row(path, path.split("/")[-2], 0.9) for path in ("set/sick/1.png", "set/normal/1.png", "set/sick/2.png")]
    rows += [row("set/normal/2.png", "normal", 0.1), row("set/sick/3.png", "sick", 0.9)]
    assert many.agreement(rows, LABELS, truth).counts == {("sick", "sick"): 2, ("normal", "normal"): 2}


def test_a_file_whose_label_is_blank_has_not_that_of_another_folder(tmp_path):
    write_table(tmp_path / "labels.csv", ["path", "label"], ["normal/p1/1.png", "normal"], ["unknown/p9/1.png", ""])
    truth = many.read_labels(tmp_path / "labels.csv", LABELS)
    with pytest.raises(InputError, match="no true label was found"):
        many.agreement([row("unknown/p9/1.png", "normal", 0.1)], LABELS, truth)


def test_the_memory_for_labels_is_that_of_their_file_however_many_folders_are_in_a_name():
    rows = [row(f"scans/{'a/' * 6000}1.png", "sick", 0.9), row("2.png", "sick", 0.9)]
    truth = {f"{'a/' * 6000}{name}.png": "sick" for name in (1, 2)}
    truth |= {f"{'b/' * 30}{name}.png": "sick" for name in range(3, 3000)}
    tracemalloc.start()
    assert many.agreement(rows, LABELS, truth).counts == {("sick", "sick"): 2}
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_of_a_folder_hidden_files_and_tables_are_left_out(tmp_path):
    names = [".DS_Store", "Thumbs.db", "metadata.csv", "._1.png", "DICOMDIR", "1.png", "1.mp4", "1.dcm", "IM0001"]
    names += ["scans.zip", "1.JPG"]
    scan = write_dicom(tmp_path / "scan.dcm", speckle(0)).read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(scan if name in {"DICOMDIR", "IM0001"} else b"any")
    given = app.build_page(Future(), Texts()).blocks.values()
    folder = next(each for each in given if each.elem_id == "folder")
    found = folder.preprocess([FileData(path=str(tmp_path / name), orig_name=name) for name in names])
    assert [name for _, name in found] == names[5:]
    assert found[0] == (str(tmp_path / "1.png"), "1.png")
    assert folder.preprocess(None) == []


def test_names_that_repeat_are_told_of_in_the_summary_of_files():
    repeated = [many.Found(row(path, "sick", 0.9), None, False, False) for path in ("1.png", "<2>.png", "<2>.png")]
    told = stage.summary(repeated, LABELS, None, "", Texts())
    assert "Several files are called &lt;2&gt;.png: give them in a zip" in told
    assert "Several files" not in stage.summary(repeated[:2], LABELS, None, "", Texts())


def test_files_of_which_only_the_first_page_is_answered_are_told_of_in_the_summary(model, tmp_path):
    loaded, pages = Future(), [Image.fromarray(speckle(seed)) for seed in range(2)]
    loaded.set_result(model)
    pages[0].save(tmp_path / "<two>.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(tmp_path / "<two>.tif", "deep/two.tif")
    files = [(str(tmp_path / name), name) for name in ("one.tif", "<two>.tif", "scans.zip")]
    seen = [Page(loaded, Texts()).see_many(given, [], None)[0] for given in (files, files[:1])]
    assert "only the first is answered: 2, the first of them &lt;two&gt;.tif" in seen[0]
    assert "only the first" not in seen[1]


def test_the_picture_of_a_clip_is_the_frame_that_is_most_surely_what_the_clip_is_called(model, tmp_path, monkeypatch):
    answers = [Answer(np.array([1 - p, p]), 0.5) for p in (0.1, 0.7, 0.99, 0.9)]
    monkeypatch.setattr(many, "load_frames", lambda source: [Image.new("RGB", (9, 9), (n, n, n)) for n in range(4)])
    monkeypatch.setattr(model.batches, "answer", lambda image, method: answers[image.getpixel((0, 0))[0]])
    monkeypatch.setattr(many, "_thumbnail", lambda image, answer: (image.getpixel((0, 0))[0], answer.probabilities[1]))
    found = next(many.examine(model.batches, [("clip.mp4", tmp_path)]))
    assert found.row["prediction"] == "sick"
    assert found.picture == (2, 0.99)


@pytest.fixture
def asked(model, monkeypatch):
    """By which method each answer is asked to be explained."""
    methods, answer = [], model.batches.answer
    monkeypatch.setattr(model.batches, "answer", lambda *given: (methods.append(given[1]), answer(*given))[1])
    return methods


def test_maps_are_made_of_the_files_that_are_shown_and_of_one_frame_of_a_clip(model, scans, asked):
    clip, image = many.examine(model.batches, many.named_files(scans[2:]))
    assert (clip.row["path"], clip.picture.size, image.picture.size) == ("clip.mp4", (64, 48), (160, 120))
    assert [asked.count(method) for method in (None, model.predictor.methods[0])] == [9, 2]
    asked.clear()
    found = list(many.examine(model.batches, many.named_files(scans[:1] * (BATCH + 3)), pictures=1))
    assert [each.picture is not None for each in found] == [True] + [False] * (BATCH + 2)
    assert asked[BATCH:] == [None] * 3


def test_a_program_s_many_files_are_answered_without_a_map(model, scans, asked):
    loading = Future()
    loading.set_result(model)
    rows, _ = Page(loading, Texts()).predict_batch(scans)
    assert rows["error"].astype(bool).tolist() == [False, True, False, False]
    assert asked == [None] * 11


def test_the_frames_of_two_clips_at_the_most_are_in_memory_whoever_gives_them(model, tmp_path, monkeypatch):
    files = [(name, write_clip(tmp_path / name, clips.FRAMES)) for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")]
    given, counts, answer = [], [], model.batches.answer

    def counted(image, method):
        given.append(weakref.ref(image))
        counts.append(sum(each() is not None for each in given))
        return answer(image, method)

    monkeypatch.setattr(model.batches, "answer", counted)
    loading = Future()
    loading.set_result(model)
    page = Page(loading, Texts())
    with ThreadPoolExecutor() as people:
        one, other = (people.submit(lambda: list(many.examine(model.batches, files))) for _ in range(2))
        seen = [people.submit(page.see_clip, str(path)) for _, path in files]
    assert [each.row["error"] for each in one.result() + other.result()] == [""] * 8
    assert all("calls this clip" in each.result() for each in seen)
    assert clips.FRAMES <= max(counts) <= 2 * clips.FRAMES + BATCH  # the network's last batch is held by its thread

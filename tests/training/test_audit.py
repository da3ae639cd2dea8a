import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from space.errors import InputError
from tests.clips import write_clip
from tests.conftest import ROOT
from tests.images import copy_of, speckle, write_table
from training import audit
from training.audit_page import summary, write_page
from training.sources import load_data


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """20 patients with 3 images each and a given split; copies with two labels; an odd, a broken, an unlisted file."""
    folder, rows = tmp_path_factory.mktemp("audit") / "home", []
    folder.mkdir()
    for patient in range(20):
        for frame in range(3):
            name, label = f"{patient:02}-{frame}.png", ("normal", "sick")[patient % 2]
            Image.fromarray(speckle(patient * 10 + frame)).save(folder / name)
            rows.append([name, label, f"p{patient}", "A", "test" if patient < 4 else "train"])
    copy_of(Image.open(folder / "05-1.png").convert("RGB"), "JPEG q60").save(folder / "again.jpg", quality=60)
    (folder / "broken.png").write_bytes(b"no image")
    shutil.copy(folder / "00-0.png", folder / "forgotten.png")
    Image.new("L", (160, 120)).save(folder / "sick_black.png")
    rows += [["again.jpg", "normal", "p20", "A", "train"], ["broken.png", "sick", "p21", "A", "train"]]
    rows += [["sick_black.png", "normal", "p22", "A", "train"]]
    write_table(folder / "metadata.csv", ["file_name", "label", "group", "site", "split"], *rows)
    return folder


@pytest.fixture(scope="module")
def away(home):
    """12 images of another site, one of which is from home, byte for byte, and one in two sizes."""
    folder = home.parent / "away"
    for label in ("normal", "sick"):
        (folder / label).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(speckle(1000 + number + 100 * (label == "sick"))).save(folder / label / f"{number}.png")
    shutil.copy(home / "00-0.png", folder / "normal" / "theirs.png")
    copy_of(Image.open(folder / "sick" / "1.png").convert("RGB"), "resized 80 %").save(folder / "sick" / "small.png")
    return folder


@pytest.fixture(scope="module")
def audited(home, away, tmp_path_factory):
    """The folder and the printed text of an audit of both."""
    output = tmp_path_factory.mktemp("output") / "audit"
    told = subprocess.run(
        [sys.executable, "-m", "training.audit", home, away, "--output", output, "--strict"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return output, told


def test_strict_ends_with_status_1_and_one_line_when_something_leaks(audited):
    output, told = audited
    assert told.returncode == 1
    assert "error: 1 leaks found: 1 pairs of exact copies stand in diff" in told.stderr.splitlines()[-1]
    assert sorted(os.listdir(output)) == ["audit.html", "audit.json"]


def test_the_report_counts_copies_by_what_they_cross(audited, home, away):
    report = json.loads((audited[0] / "audit.json").read_text())
    exact, near = report["duplicates"]["exact"], report["duplicates"]["near"]
    assert (exact["pairs"], exact["across_data"], exact["across_labels"]) == (1, 1, 0)
    assert (near["pairs"], near["across_data"], near["across_labels"], near["across_groups"]) == (2, 0, 1, 2)
    pairs = report["duplicates"]["crossing"]
    crossing = {(pair["one"]["path"], pair["other"]["path"]): pair["across"] for pair in pairs}
    assert crossing["00-0.png", "normal/theirs.png"] == ["sites", "data", "parts"]
    assert crossing["05-1.png", "again.jpg"] == ["groups", "labels"]
    assert {(file["path"], file["problem"]) for file in report["files"]} == {
        ("broken.png", "broken"),
        ("sick_black.png", "blank"),
    }
    told = report["data"][str(home)]
    assert (told["images"], told["groups"], told["groups_are"]) == (63, 23, "given")
    assert told["groups_with_copies_joined"] == 22
    assert told["sites"] == {"A": {"normal": 32, "sick": 31}}
    assert report["data"][str(away)]["groups_are"] == "none known"
    names = report["labels"][str(home)]["contradicting_names"]
    assert [(image["path"], image["label"]) for image in names] == [("sick_black.png", "normal")]
    assert {found["feature"] for found in report["confounds"][str(home)]} == {"file", "brightness", "corners", "border"}


def test_the_printed_page_says_what_matters_in_words(audited, home):
    printed = audited[1].stdout
    for line in (
        f"{home}: 63 images in 23 groups (given)",
        f"leak: 1 pairs of exact copies stand in different parts, 00-0.png ({home}: test) and normal/theirs.png",
        "warning: 1 images cannot be read",
        f"warning: {home}: 1 image files are not in its metadata.csv and are left out, forgotten.png for one",
        "warning: 1 pairs of near copies have different labels",
        "warning: 2 pairs of near copies are in different groups, which are joined",
        "1 file names contradict their labels, sick_black.png (normal) for one",
    ):
        assert line in printed


def test_the_page_has_the_pictures_of_the_pairs_inside(audited):
    page = (audited[0] / "audit.html").read_text()
    assert "05-1.png" in page
    assert len(re.findall(r'<img src="data:image/jpeg;base64,[\w+/=]{500,}"', page)) >= 2 * 3 + 1
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched from elsewhere


def test_clean_data_passes_strict(home, tmp_path, capsys):
    names = [f"{patient:02}-{frame}.png" for patient in range(20) for frame in range(3)]
    rows = [[str(home / name), ("normal", "sick")[int(name[:2]) % 2], name[:2]] for name in names]
    write_table(tmp_path / "list.csv", ["path", "label", "group"], *rows)
    audit.main([str(tmp_path / "list.csv"), "--strict", "--output", str(tmp_path / "audit")])
    assert "no leak between parts or data sets" in capsys.readouterr().out


def test_images_without_a_part_or_a_label_and_other_words_for_a_part_cross_nothing(tmp_path):
    for name in range(6):
        Image.fromarray(speckle(name - (name in (2, 4)))).save(tmp_path / f"{name}.png")  # copies of the one before
    parts = ("train", "Training", "", "", "train", "val")
    rows = [[f"{name}.png", "normal" if part else "", "ab"[name == 5], part] for name, part in enumerate(parts)]
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "group", "split"], *rows)
    report = audit.audit_data({"home": load_data(tmp_path)}).report
    assert report["leaks"] == []
    exact = report["duplicates"]["exact"]
    assert (exact["pairs"], exact["within_group"], exact["across_labels"], exact["across_parts"]) == (2, 2, 0, 0)


def test_a_copy_in_two_data_sets_that_are_both_split_is_a_leak(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        for name in range(4):
            Image.fromarray(speckle(name + 9 * (place == "there" and name > 0))).save(tmp_path / place / f"{name}.png")
        rows = [[f"{name}.png", "normal", f"g{name}", "train" if name < 2 else "test"] for name in range(4)]
        write_table(tmp_path / place / "metadata.csv", ["file_name", "label", "group", "split"], *rows)
    named = {str(tmp_path / place): load_data(tmp_path / place) for place in ("here", "there")}
    (leak,) = audit.audit_data(named).report["leaks"]
    assert leak.startswith("1 pairs of exact copies stand in different parts, 0.png (")
    assert leak.endswith("/there: train) for one")


def test_what_was_left_out_of_a_published_split_is_in_no_part(tmp_path):
    for name in range(4):
        Image.fromarray(speckle(name)).save(tmp_path / f"{name}.png")
    rows = [["0.png", "sick", "a", "train"], ["1.png", "sick", "a", "left_out"], ["2.png", "", "a", "unlabelled"]]
    write_table(
        tmp_path / "metadata.csv", ["file_name", "label", "group", "split"], *rows, ["3.png", "normal", "b", "test"]
    )
    assert audit.audit_data({"published": load_data(tmp_path)}).report["leaks"] == []


def test_groups_are_proposed_from_names_where_none_are_given_and_shown(home, tmp_path, capsys):
    for label in ("normal", "sick"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for clip in range(5):
            for frame in range(3):
                source = home / f"{clip * 2 + (label == 'sick'):02}-{frame}.png"
                shutil.copy(source, tmp_path / "data" / label / f"scan{clip}_{frame}.png")
    audit.main([str(tmp_path / "data"), "--output", str(tmp_path / "audit")])
    printed = capsys.readouterr().out
    assert "30 images in 10 groups (proposed from file names (clip_frame))" in printed
    assert re.search(r"largest groups: (normal|sick)/scan\d \(3\)", printed)


@pytest.mark.parametrize(
    ("name", "groups", "warning"),
    [
        ("patient{0}_{1}", 8, "8 groups are proposed from file names (personNNN), such as normal/patient0 (4 images)"),
        ("{1}-of-{0}", 16, "groups are clips alone; frames of one patient may stand in several parts"),
    ],
)
def test_groups_of_clips_are_proposed_from_their_names_or_said_to_be_unknown(tmp_path, name, groups, warning):
    for number in range(16):
        write_clip(
            tmp_path / ("normal", "sick")[number % 4 // 2] / f"{name.format(number // 2, 'ab'[number % 2])}.gif", 2
        )
    report = audit.audit_data({"clips": load_data(tmp_path)}).report
    assert report["data"]["clips"]["groups"] == groups
    assert any(warning in line for line in report["warnings"])


def test_groups_of_one_name_in_two_data_sets_are_a_warning_unless_they_are_simulated(tmp_path):
    for number, (place, synthetic) in enumerate({"here": "", "there": "", "simulated": "yes"}.items()):
        (tmp_path / place).mkdir()
        rows = [[f"{frame}.png", "sick", f"p{2 * number + frame}" * (frame < 3), synthetic] for frame in range(4)]
        for frame in range(4):
            Image.fromarray(speckle(10 * number + frame)).save(tmp_path / place / f"{frame}.png")
        write_table(tmp_path / place / "list.csv", ["path", "label", "patient_id", "synthetic"], *rows)
    named = {place: load_data(tmp_path / place / "list.csv") for place in ("here", "there", "simulated")}
    report = audit.audit_data(named).report
    assert report["leaks"] == []
    assert [line for line in report["warnings"] if "another data set" in line] == [
        "here: 1 groups have a name that another data set has too; put both into one table if they are the same "
        "patients, p2 of there for one"
    ]


@pytest.mark.parametrize("name", ["{label}/{patient:08}_{frame:03}.png", "{label}/{patient:08}/{frame}.png"])
def test_a_patient_of_two_classes_is_told_of_whether_folders_or_files_name_him(tmp_path, name):
    for number in range(32):
        label = "sick" if number >= 20 or (number < 12 and number % 4 > 1) else "normal"
        file = tmp_path / name.format(label=label, patient=number // 4, frame=number % 4)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(speckle(number)).save(file)
    assert (
        "ward: 3 names of groups stand in more than one class and are taken for a patient of each; tell groups in a "
        "table where it is one patient, 00000000 for one"
    ) in audit.audit_data({"ward": load_data(tmp_path)}).report["warnings"]


@pytest.mark.parametrize(
    ("name", "group", "examples"),
    [
        ("{site}{number}", "p{patient}", ["p0"]),
        ("{site}_patient{patient}_{number}", "", ["patient0"]),
        ("{number}", "{site}{patient}", []),
    ],
)
def test_groups_that_stand_at_more_than_one_recorded_site_are_a_warning(tmp_path, name, group, examples):
    rows = []
    for number in range(24):
        told = {"site": "AB"[number // 12], "patient": number % 12 // 2, "number": number}
        Image.fromarray(speckle(number)).save(tmp_path / f"{name.format(**told)}.png")
        site = "" if number == 23 else told["site"]
        rows.append([f"{name.format(**told)}.png", ("normal", "sick")[number // 2 % 2], group.format(**told), site])
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "group", "site"], *rows)
    warnings = audit.audit_data({"ward": load_data(tmp_path)}).report["warnings"]
    assert [line for line in warnings if "more than one site" in line] == [
        "ward: 6 groups stand at more than one site; write the site into the group where these are other patients, "
        f"{example} for one"
        for example in examples
    ]


def test_which_of_three_classes_can_be_told_without_the_anatomy_is_said(tmp_path):
    for number in range(30):
        label = ("normal", "viral", "worse")[number % 3]
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(speckle(number, 90, 120 - 20 * (label == "viral"))).save(tmp_path / label / f"{number}.png")
    report = audit.audit_data({"ward": load_data(tmp_path)}).report
    told = "ward: the class viral can be told from frame size, format, compression and EXIF alone, AUC 1.00"
    assert any(line.startswith(told) for line in report["warnings"])
    write_page(tmp_path / "audit.html", report, lambda *_: Image.new("L", (9, 9)))
    for page in (summary(report), (tmp_path / "audit.html").read_text()):
        assert re.search(r"viral\W+(td\W+)*(file|frame size)", page)


def test_files_are_unlike_the_rest_of_their_own_data(tmp_path):
    """8 images in the dark and 4 in the light."""
    for place, count, light in (("dark", 8, 0), ("light", 4, 200)):
        (tmp_path / place / "normal").mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(speckle(number + light, 64, 64) // 5 + light)
            image.save(tmp_path / place / "normal" / f"{number}.png")
    assert audit.audit_data({place: load_data(tmp_path / place) for place in ("dark", "light")}).report["files"] == []


def test_images_of_the_sites_that_are_trained_on_are_judged_alone(tmp_path):
    """Of plain images those of site B are darker where they are sick."""
    rows = []
    for number in range(24):
        site, sick = "AB"[number % 2], number // 2 % 2
        Image.new("L", (64, 64), 50 if sick and site == "B" else 100).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", ("normal", "sick")[sick], site])
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "site"], *rows)
    assert audit.audit_data({"ward": load_data(tmp_path)}, sites=["A"]).report["confounds"]["ward"] == []


def test_copies_that_are_told_to_be_of_others_are_not_learned_from(tmp_path):
    """Of 12 images, each of which four patients have."""
    rows = []
    for number in range(48):
        Image.fromarray(speckle(number // 4, 64, 64)).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", ("normal", "sick")[number // 4 % 2], f"p{number}"])
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "group"], *rows)
    report = audit.audit_data({"ward": load_data(tmp_path)}).report
    assert all(found["auc"] < 0.9 for found in report["confounds"]["ward"])
    assert report["labels"]["ward"]["judge_auc"] < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["HOME", "HOME"], "found a data set twice"),
        ([], "the following arguments are required: DATA"),
        (["HOME", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_arguments_are_refused(home, tmp_path, arguments, message):
    arguments = [str(home) if argument == "HOME" else argument for argument in arguments]
    with pytest.raises(InputError, match=message):
        audit.main([*arguments, "--output", str(tmp_path / "audit")])
    assert not (tmp_path / "audit").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    for label in ("normal", "sick"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.fromarray(speckle(len(label))).save(tmp_path / "data" / label / "1.png")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*file/audit"):
        audit.main([str(tmp_path / "data"), "--output", str(tmp_path / "file" / "audit")])


def test_the_bar_of_every_class_is_to_be_seen(tmp_path):
    classes = {f"class {number}": 1 for number in range(12)}
    data = {"images": 12, "classes": classes, "sites": {"A": classes}, "groups": 12, "groups_with_copies_joined": 12}
    report = {"data": {"x": data | {"largest_groups": {}}}, "duplicates": {"exact": {}, "near": {}}}
    report |= {"confounds": {}, "labels": {}}
    write_page(tmp_path / "audit.html", report, None)
    opacities = re.findall(r'style="opacity: (\S+);', (tmp_path / "audit.html").read_text())
    assert len(opacities) == 12
    assert all(0.1 < float(opacity) <= 1 for opacity in opacities)

import csv
import filecmp
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from training import anatomy, phantom, phantom_sites, ultrasound
from training.phantom import MOST_FRAMES, draw_frames, draw_patients, draw_sites, write_phantom
from training.phantom_sites import Look, draw_varied_anatomy
from training.sources import find_phantom, load_data, phantom_folder


def source(module):
    return Path(module.__file__).read_text()


def table(folder):
    with open(folder / "metadata.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_full_size_is_that_of_the_study():
    frames = Counter()
    for patient in draw_patients():
        frames[patient.site, patient.label] += patient.frames
    assert frames == {("A", "normal"): 364, ("A", "sick"): 351, ("A", ""): 50, ("B", "normal"): 112, ("B", "sick"): 112}


def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_phantom(tmp_path / name, seed=seed, scale=0.02)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert len(files) > 25
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)[0] == files
    assert (tmp_path / "one" / "metadata.csv").read_text() != (tmp_path / "other" / "metadata.csv").read_text()


def test_the_table_lists_every_image_and_patients_keep_one_label_and_site(small_phantom):
    rows = table(small_phantom)
    assert list(rows[0]) == ["file_name", "label", "group", "site", "finding", "synthetic", "license"]
    assert sorted(row["file_name"] for row in rows) == sorted(
        f"images/{p.name}" for p in (small_phantom / "images").iterdir()
    )
    of_group = defaultdict(list)
    for row in rows:
        of_group[row["group"]].append((row["label"], row["site"], row["finding"]))
    assert all(len(set(kinds)) == 1 and len(kinds) <= MOST_FRAMES for kinds in of_group.values())
    assert max(map(len, of_group.values())) > 1


def test_every_sick_frame_has_a_mask_of_its_size_and_no_other_frame_has_one(small_phantom):
    masks = {path.name for path in (small_phantom / "masks").iterdir()}
    for row in table(small_phantom):
        name = row["file_name"].removeprefix("images/")
        assert (name in masks) == (row["label"] == "sick")
        if name in masks:
            with (
                Image.open(small_phantom / "masks" / name) as mask,
                Image.open(small_phantom / "images" / name) as image,
            ):
                assert mask.size == image.size
                assert 0.005 < (np.asarray(mask) > 0).mean() < 0.9


def test_nothing_tells_the_truth_of_the_unknown_images(small_phantom):
    unknown = [row for row in table(small_phantom) if not row["label"]]
    assert unknown
    assert all(row["finding"] == "" for row in unknown)


def test_every_file_says_that_it_is_synthetic(small_phantom):
    for path in [*small_phantom.glob("images/*"), *small_phantom.glob("masks/*")]:
        with Image.open(path) as image:
            assert image.text["Synthetic"] == "yes"
    assert all(row["synthetic"] == "yes" for row in table(small_phantom))


def test_brightness_alone_does_not_tell_the_label(demo):
    folder = phantom_folder()
    scores = defaultdict(list)
    for row in table(folder):
        if row["label"]:
            with Image.open(folder / row["file_name"]) as image:
                scores[row["site"]].append((row["label"] == "sick", np.asarray(image).mean()))
    for pairs in scores.values():
        auc = roc_auc_score(*zip(*pairs, strict=True))
        assert max(auc, 1 - auc) < 0.65


def test_another_seed_draws_other_sites_and_patients():
    one, other = (load_data(f"phantom?sites=2{more}") for more in ("", "&seed=1"))
    assert list(one["path"]) == list(other["path"])
    assert not any(a == b for a, b in zip(one["image"], other["image"], strict=True))


DRAWING = [anatomy, phantom, phantom_sites, ultrasound]


def test_what_the_phantom_is_drawn_by_takes_nothing_from_other_modules_of_ours():
    taken = {name for each in DRAWING for name in re.findall(r"^from (?:training|space)[.](\w+)", source(each), re.M)}
    assert taken == {each.__name__.rpartition(".")[2] for each in DRAWING} - {"phantom"}


@pytest.mark.parametrize("drawing", DRAWING)
def test_frames_in_the_cache_are_not_used_when_they_would_be_drawn_otherwise_now(drawing, tmp_path, monkeypatch):
    before = phantom_folder(sites=1)
    changed = tmp_path / "changed.py"
    changed.write_text(source(drawing) + "# other signs\n")
    monkeypatch.setattr(drawing, "__file__", str(changed))
    assert phantom_folder(sites=1) != before


def test_the_seed_that_is_taken_where_none_is_named_can_be_named():
    assert find_phantom("phantom?seed=0&sites=1") == find_phantom("phantom?sites=1") == phantom_folder(sites=1)


def test_drawn_sites_have_a_frame_of_each_class_and_are_set_differently(tmp_path):
    sites = draw_sites(4)
    assert list(sites) == ["S001", "S002", "S003", "S004"]
    assert sites == draw_sites(4)
    assert draw_sites(2) == {name: sites[name] for name in ("S001", "S002")}
    assert len({site.dynamic_range for site in sites.values()}) == 4
    write_phantom(tmp_path / "drawn", sites=4)
    frames = Counter((row["site"], row["label"]) for row in table(tmp_path / "drawn"))
    assert frames == {(site, label): 1 for site in sites for label in ("normal", "sick")}
    assert {row["synthetic"] for row in table(tmp_path / "drawn")} == {"yes"}
    for row in table(tmp_path / "drawn"):
        if row["label"] == "sick":
            with (
                Image.open(tmp_path / "drawn" / row["file_name"]) as image,
                Image.open(tmp_path / "drawn" / row["file_name"].replace("images", "masks")) as mask,
            ):
                assert mask.size == image.size
                assert np.asarray(mask).any()


def test_a_lines_do_not_tell_b_lines_from_healthy_lungs_at_drawn_sites():
    seen = {}
    for finding in ("regular", "b-lines"):
        drawn = [draw_varied_anatomy(np.random.default_rng([7, n]), finding) for n in range(400)]
        seen[finding] = np.mean([anatomy.a_lines > -60 for anatomy in drawn])
    assert abs(seen["regular"] - seen["b-lines"]) < 0.1


def test_rays_of_a_sick_place_start_at_the_small_consolidation_there():
    patches = [
        lesions
        for n in range(100)
        if (lesions := draw_varied_anatomy(np.random.default_rng([8, n]), "b-lines").lesions)[0].kind == "consolidation"
    ]
    assert len(patches) > 10
    for lesions in patches:
        places = [lesion for lesion in lesions if lesion.kind == "consolidation"]
        assert all(place.depth < 8 for place in places)
        first = lesions[1]
        assert first.kind == "b-lines"
        assert abs(first.u - places[0].u) <= places[0].width / 2


def test_what_cannot_be_seen_is_drawn_anew_at_drawn_sites(monkeypatch):
    sites = draw_sites(46)
    patients = [patient for patient in draw_patients(sites=sites) if patient.site in ("S001", "S002", "S046")]

    def frames():
        return {patient: draw_frames(patient, sites[patient.site])[0][0] for patient in patients}

    clear = frames()
    monkeypatch.setattr(phantom, "LEAST_CONTRAST", 0.0)
    changed = [patient for patient, frame in frames().items() if not np.array_equal(frame, clear[patient])]
    assert [(patient.site, patient.label) for patient in changed] == [("S046", "sick")]


def test_machines_of_drawn_sites_take_speckle_away_and_nothing_else():
    assert all(site.calmed[0] > 0 for site in draw_sites(4).values())
    assert all(site.calmed == (0, 0) for site in draw_sites().values())
    frame = np.full((120, 160), 100.0)
    frame[:, 80:] = 180
    speckled = (frame + np.random.default_rng(0).normal(0, 20, frame.shape)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(Look().finish(speckled), speckled)
    calmed = Look(calmed=0.8, reach=5).finish(speckled).astype(float)
    for part in (slice(10, 70), slice(90, 150)):  # away from the edge between them
        assert calmed[:, part].std() < speckled[:, part].std() / 2
        assert calmed[:, part].mean() == pytest.approx(frame[:, part].mean(), abs=2)


def test_fluid_at_drawn_sites_may_reach_further_than_at_sites_a_and_b():
    def depths(draw):
        drawn = [draw(np.random.default_rng([9, n]), "effusion").lesions[0].depth for n in range(200)]
        return np.quantile(drawn, [0, 0.5, 1])

    least, middle, most = depths(draw_varied_anatomy) / depths(anatomy.draw_anatomy)
    assert least >= 1
    assert middle > 1.3
    assert most > 1.5

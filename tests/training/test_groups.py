from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from training.groups import groups_from_names, merge, with_groups

CLIP = "clip_frame"


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"clips/{clip}_frame{frame}.png" for clip in "abcdefgh" for frame in range(4)], CLIP),
        (
            [f"{clip}-{frame:03}.jpg" for clip in ("Reg1", "Cov2", "Pne3", "Vir4", "Con5", "Eff6") for frame in (0, 7)],
            "clip_frame",
        ),
        ([f"person{n}_bacteria_{k}.jpeg" for n in range(1, 9) for k in range(n * 3, n * 3 + 3)], "personNNN"),
        ([f"NORMAL2-IM-{n:04}-{k:04}.jpeg" for n in range(1, 9) for k in range(3)], "IM-NNNN-NNNN"),
    ],
)
def test_names_of_frames_give_a_group_for_each_clip_or_patient(names, pattern):
    groups, used = groups_from_names(names)
    assert used == pattern
    clips = {}
    for name, group in zip(names, groups, strict=True):
        clips.setdefault(group, []).append(name)
    assert {len(frames) for frames in clips.values()} == {len(names) // len(clips)}
    assert len(clips) in (6, 8)


def test_the_same_name_in_two_folders_is_two_groups():
    names = [f"{label}/clip{n}_{k}.png" for label in ("normal", "sick") for n in range(4) for k in range(2)]
    assert len(set(groups_from_names(names)[0])) == 8


@pytest.mark.parametrize("folder", ["{}/sick", "chest_xray/{}/SICK", "/data/images/{}/sick", "sick/{}"])
@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "VAL")])
def test_frames_of_a_clip_are_one_group_in_whichever_part_of_a_given_split_they_stand(folder, parts):
    names = [f"{folder.format(part)}/clip{n}_{k}.png" for k, part in enumerate(parts) for n in range(6)]
    assert len(set(groups_from_names(names)[0])) == 6


@pytest.mark.parametrize(
    "names",
    [
        [f"image_{number}.png" for number in range(40)],  # numbers and no clips
        [f"{word}.png" for word in ("heron", "finch", "robin", "wren", "crane", "stork")],
        [f"{number}.png" for number in range(40)],
    ],
)
def test_numbered_files_are_no_clips(names):
    assert groups_from_names(names) == (names, "")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train/patient{:05}/study{}/view1_frontal.jpg", "patient{:05}"),  # CheXpert
        ("sub-S{0:05}/ses-E{1}/sub-S{0:05}_ses-E{1}_run-1.png", "sub-S{:05}"),  # BIMCV
        ("images/sub-S{:05}_ses-E{}_run-1.png", "images/sub-S{:05}"),
    ],
)
def test_all_studies_of_a_patient_are_one_group(name, group):
    names = [name.format(patient, study) for patient in range(6) for study in (1, 2)]
    groups = [group.format(patient) for patient in range(6) for _ in (1, 2)]
    assert groups_from_names(names) == (groups, "personNNN")


@pytest.mark.parametrize(
    "folders", [["patient0", "patient1", "patient2"], ["normal_case2", "covid_case2"], ["COVID_pat1", "normal"]]
)
def test_clips_of_few_patients_or_in_folders_of_other_things_keep_their_groups(folders):
    clips = [f"{folder}/clip{clip}" for folder in folders for clip in range(4)]
    groups, pattern = groups_from_names([f"{clip}_frame{frame}.png" for clip in clips for frame in range(3)])
    assert (groups, pattern) == ([clip for clip in clips for _ in range(3)], "clip_frame")


@pytest.mark.parametrize(("name", "pattern"), [("clip{}_frame{}.png", CLIP), ("patient{}/{}.png", "personNNN")])
def test_a_folder_that_all_files_lie_in_is_no_patient(name, pattern):
    names = [f"/home/case2/scans/{name.format(number, frame)}" for number in range(8) for frame in range(3)]
    groups, used = groups_from_names(names)
    assert (len(set(groups)), used) == (8, pattern)


def test_what_begins_with_sub_is_no_patient_without_a_number():
    names = [f"{clip}/sub-pleural_{frame}.png" for clip in "abcdef" for frame in (1, 2)]
    assert groups_from_names(names) == ([f"{clip}/sub-pleural" for clip in "abcdef" for _ in (1, 2)], CLIP)


@pytest.mark.parametrize("name", ["patient{}_{}.png", "NORMAL2-IM-{:04}-{:04}.jpeg"])
def test_a_patient_of_many_images_is_believed_and_takes_the_others_from_nobody(name):
    names = [name.format(patient, k) for patient in range(30) for k in range(4)]
    names += [name.format(99, k) for k in range(31)]  # a fifth of all
    assert Counter(Counter(groups_from_names(names)[0]).values()) == {4: 30, 31: 1}


def test_numbered_files_take_no_patients_from_those_beside_them():
    persons = [f"person{n}_virus_{k}.png" for n in range(8) for k in range(3)]
    numbered = [f"Normal-{n}.png" for n in range(1, 61)]
    groups, used = groups_from_names(persons + numbered)
    assert groups == [name.partition("_")[0] for name in persons] + numbered
    assert used == "personNNN"


def grouped(clips: list[str]) -> list[str]:
    """The groups of two frames of each clip, where none are given."""
    paths = [f"{clip}#{number}" for clip in clips for number in (0, 7)]
    return list(
        with_groups(Dataset.from_dict({"path": paths, "group": [clip for clip in clips for _ in (0, 7)]}))["group"]
    )


def test_clips_of_one_patient_by_their_names_are_one_group():
    clips = [f"normal/patient{patient}_clip{clip}.gif" for patient in range(6) for clip in range(2)]
    assert grouped(clips) == [f"normal/patient{patient}" for patient in range(6) for _ in range(4)]


@pytest.mark.parametrize("names", [[f"scan_{number}.mp4" for number in range(40)], ["heron.avi", "finch.avi"]])
def test_frames_of_a_clip_whose_name_tells_no_patient_are_one_group(names):
    assert grouped(names) == [name for name in names for _ in (0, 7)]


def test_names_of_files_make_no_groups_where_some_are_told():
    paths = [f"clip{clip}_frame{frame}.png" for clip in range(8) for frame in range(2)]
    told = ["P1"] * 4 + paths[4:]
    assert list(with_groups(Dataset.from_dict({"path": paths, "group": told}))["group"]) == told


def test_pairs_join_groups_whatever_their_order():
    groups = ["d", "a", "b", "c", "a"]
    joined = ["b", "a", "b", "c", "a"]
    assert merge(groups, np.array([[0, 2]])) == joined
    assert merge(groups, np.empty((0, 2), int)) == groups
    chain = np.array([[0, 2], [2, 3], [3, 1]])
    assert merge(groups, chain) == merge(groups, chain[::-1]) == ["a"] * 5

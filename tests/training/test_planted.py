import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PIL_Image
from scipy.ndimage import map_coordinates
from transformers import AutoImageProcessor

from space.errors import InputError
from training import planted
from training.anatomy import FINDINGS
from training.examples import Examples
from training.phantom import SITES, draw_frames, draw_patients
from training.planted import Planting, find_fan, find_pleura, plant


@pytest.fixture(scope="module")
def healthy():
    """Frames of 14 healthy patients of sites A and B, as images of mode L."""
    patients = [patient for patient in draw_patients(seed=5) if patient.label == "normal"][::10][:14]
    images = [PIL_Image.fromarray(draw_frames(patient, SITES[patient.site])[0][0]) for patient in patients]
    for image in images:
        image.thumbnail((planted.LARGEST, planted.LARGEST))
    return images


def sector(half, near, far, middle=150, apex=-60):
    """A frame of 300 x 300 whose sector is grey, with a bright arc at 100 pixels from the apex."""
    y, x = np.mgrid[:300, :300]
    distance, angle = np.hypot(x - middle, y - apex), np.arctan2(x - middle, y - apex)
    inside = (np.abs(angle) < np.deg2rad(half)) & (distance > near) & (distance < far)
    line = np.abs(distance - 150) < 2
    return np.where(inside, np.where(line, 220, 60), 0).astype(np.float32)


@pytest.mark.parametrize("half", [20, 30, 38])
def test_the_sector_is_found(half):
    fan = find_fan(sector(half, near=80, far=340))
    assert np.rad2deg(fan.half) == pytest.approx(half, abs=2)
    assert fan.middle == pytest.approx(150, abs=4)
    assert fan.apex == pytest.approx(-60, abs=12)


def test_the_picture_of_a_linear_probe_is_a_rectangle():
    grey = np.zeros((300, 300), np.float32)
    grey[10:290, 60:240] = 60
    fan = find_fan(grey)
    assert fan.apex is None
    assert fan.middle == pytest.approx(150, abs=4)
    assert fan.half == pytest.approx(90, abs=4)


def test_pixels_and_beams_are_each_others_inverse():
    for grey in (sector(30, 80, 340), np.pad(np.full((280, 180), 60, np.float32), ((10, 10), (60, 60)))):
        fan = find_fan(grey)
        rows, columns = (each[40:400:60, 20:150:30].round().astype(int) for each in fan.pixels_of_beams())
        samples, beams = fan.beams_of_pixels((800, 800))[:, rows, columns]  # of a picture that holds all of them
        assert np.abs(samples - np.arange(40, 400, 60)[:, None]).max() < 2
        assert np.abs(beams - np.arange(20, 150, 30)).max() < 1.5


def test_the_pleural_line_is_found_across_all_beams():
    rng = np.random.default_rng(0)
    at = (90 + 20 * np.sin(np.linspace(0, 3, planted.BEAMS))).round().astype(int)
    beams = rng.rayleigh(30, (planted.SAMPLES, planted.BEAMS)).astype(np.float32)
    beams[at + np.arange(-3, 4)[:, None], np.arange(planted.BEAMS)] += 120
    beams[200:206] += 150  # an A-line may be brighter, but lies deeper
    assert np.abs(find_pleura(beams) - at).max() < 6


@pytest.mark.parametrize("finding", FINDINGS)
def test_signs_are_drawn_below_the_pleural_line_and_leave_what_is_above_it(healthy, finding):
    made = [(image, plant(image, np.random.default_rng([1, n]), finding)) for n, image in enumerate(healthy)]
    made = [(np.asarray(image, int), np.asarray(other, int)) for image, other in made if other]
    assert len(made) > len(healthy) / 2
    for before, after in made:
        assert before.shape == after.shape
        fan = find_fan(before.astype(np.float32))
        line = find_pleura(map_coordinates(before.astype(np.float32), fan.pixels_of_beams(), order=1))
        samples, beams = fan.beams_of_pixels(before.shape)
        above = samples < line[beams.round().clip(0, planted.BEAMS - 1).astype(int)] - 12
        assert above.any()
        assert np.abs(after - before)[above].max() <= 4
        assert (np.abs(after - before) > planted.SEEN).mean() >= planted.LEAST * 0.99
    changed = np.mean([(before != after).mean() for before, after in made])
    assert 0.02 < changed < 0.8


def test_b_lines_are_bright_and_fluid_is_dark(healthy):
    brighter, darker = {}, {}
    for finding in FINDINGS:
        made = [(image, plant(image, np.random.default_rng([2, n]), finding)) for n, image in enumerate(healthy)]
        change = [np.asarray(other, int).ravel() - np.asarray(image, int).ravel() for image, other in made if other]
        brighter[finding] = np.mean([(each > planted.SEEN).mean() for each in change])
        darker[finding] = np.mean([(each < -planted.SEEN).mean() for each in change])
    assert brighter["b-lines"] > 4 * darker["b-lines"]
    assert darker["effusion"] > 4 * darker["b-lines"]


def test_the_same_chances_give_the_same_picture_and_others_another(healthy):
    one, same, other = (plant(healthy[3], np.random.default_rng(seed), "b-lines") for seed in (0, 0, 1))
    assert one.tobytes() == same.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (300, 300)])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_picture_without_a_lung_is_planted_or_left_without_an_error(size, grey):
    for seed in range(3):
        other = plant(PIL_Image.new("L", size, grey), np.random.default_rng(seed))
        assert other is None or other.size == size


def test_a_large_frame_is_scaled_down(healthy):
    large = healthy[3].resize((healthy[3].width * 3, healthy[3].height * 3))
    made = [plant(large, np.random.default_rng(seed), "b-lines") for seed in range(5)]
    assert {max(image.size) for image in made if image} == {planted.LARGEST}


def rows_of(images, labels, sites, names=("normal", "sick")):
    features = Features({"image": Image(), "label": ClassLabel(names=list(names)), "site": Value("string")})
    return Dataset.from_dict({"image": images, "label": labels, "site": sites}, features=features)


def test_a_share_of_the_sick_gives_its_place_to_healthy_ones_of_all_sites(healthy):
    asked = []
    images = [image.convert("RGB") for image in healthy[:12]]
    rows = rows_of(images, [0] * 8 + [1] * 4, ["one"] * 6 + ["two"] * 2 + ["one"] * 4)

    def load(index):
        asked.append(int(index))
        return images[index]

    planting = Planting(rows, 0.5)
    assert all(planting.draw(index, np.random.default_rng(index), load) is None for index in (*range(8), 12, 100))
    shown = [planting.draw(8 + n % 4, np.random.default_rng([3, n]), load) for n in range(60)]
    assert 0.3 < np.mean([picture is not None for picture in shown]) < 0.7
    assert {picture.mode for picture in shown if picture} == {"RGB"}
    assert set(asked) <= set(range(8))
    assert 0.25 < np.mean([index >= 6 for index in asked]) < 0.75  # two frames of eight, but a site as the other


def test_examples_of_healthy_lungs_stay_as_they_are_and_of_disease_keep_their_label(healthy, small_model):
    processor = AutoImageProcessor.from_pretrained(small_model, use_fast=False)
    rows = rows_of([image.convert("RGB") for image in healthy[:6]], [0, 0, 0, 0, 1, 1], ["one"] * 6)
    plain = Examples(rows, processor)
    always = Examples(rows, processor, planting=Planting(rows, 1))
    again = Examples(rows, processor, planting=Planting(rows, 1))
    for index in range(6):
        one, other = plain[index], always[index]
        assert one["labels"] == other["labels"]
        assert bool((one["pixel_values"] == other["pixel_values"]).all()) == (index < 4)
        assert (other["pixel_values"] == again[index]["pixel_values"]).all()
    assert (always[4]["pixel_values"] != always[4 + len(rows)]["pixel_values"]).any()  # in the next epoch


def test_three_classes_are_refused():
    rows = rows_of([None] * 3, [0, 1, 2], ["one"] * 3, names=("normal", "covid", "pneumonia"))
    with pytest.raises(InputError, match="planted: found the classes normal, covid, pneumonia, expected two"):
        Planting(rows, 0.5)

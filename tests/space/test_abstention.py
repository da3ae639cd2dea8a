import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from space.abstention import FILE, Abstention, stage_features
from space.predictor import Predictor
from tests.images import strange_pictures
from training.sources import load_data, phantom_folder


def cloud(rng, n, stretch=1.0):
    """Points of two stages, (n, 6) and (n, 40): long in some directions, flat in others."""
    return [rng.normal(0, stretch, (n, width)) * np.geomspace(5, 0.1, width) for width in (6, 40)]


@pytest.fixture
def fitted():
    rng = np.random.default_rng(0)
    return Abstention.fit(cloud(rng, 300), cloud(rng, 100)), rng


def test_what_is_drawn_alike_is_accepted_and_what_is_far_is_not(fitted):
    abstention, rng = fitted
    assert (abstention.distances(cloud(rng, 1000)) < 1).all()
    assert (abstention.distances(cloud(rng, 1000, stretch=8)) > 1).all()


def test_one_odd_validation_image_does_not_let_everything_pass():
    rng = np.random.default_rng(0)
    train, validation = cloud(rng, 300), cloud(rng, 100)
    for points in validation:
        points[0] *= 100
    abstention = Abstention.fit(train, validation)
    assert (abstention.distances(cloud(rng, 1000)) < 1).all()
    assert (abstention.distances(cloud(rng, 1000, stretch=15)) > 1).all()


def test_a_channel_that_is_hardly_ever_active_does_not_decide_alone(fitted):
    _, rng = fitted

    def with_dead(points, spread):
        return [np.column_stack([stage, rng.normal(0, spread, len(stage))]) for stage in points]

    abstention = Abstention.fit(with_dead(cloud(rng, 300), 0), with_dead(cloud(rng, 100), 0))
    assert (abstention.distances(with_dead(cloud(rng, 200), 3e-3)) < 1).all()


def test_a_stage_that_is_never_active_leaves_the_judgement_to_the_others():
    rng = np.random.default_rng(0)
    train, validation, far = rng.normal(size=(100, 8)), rng.normal(size=(30, 8)), np.full((1, 8), 40.0)
    stages = [[points, np.zeros_like(points)] for points in (train, validation, far)]
    found = Abstention.fit(*stages[:2])
    assert (found.distances(stages[1]) <= 1).all()
    assert found.distances(stages[2]) > 1


def test_far_depends_on_the_direction(fitted):
    abstention, _ = fitted
    along, across = np.zeros((2, 6)), np.zeros((2, 40))
    along[0, 0], along[1, -1] = 4.0, 4.0  # a usual step in the long direction, an enormous one in the flat one
    near, far = abstention.distances([along, across])
    assert near < 1 < far


def test_what_lies_off_all_axes_that_are_kept_is_far():
    """Points that vary in 4 directions, and a little in all others."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(120, 4)) @ rng.normal(size=(4, 64)) + 0.05 * rng.normal(size=(120, 64))
    abstention = Abstention.fit([points[:60]], [points[60:]])
    axes, scale = (abstention.tensors[f"0.{name}"] for name in ("axes", "scale"))
    off = rng.normal(size=64)
    off -= axes.T @ (axes @ off)
    assert abstention.distances([points[60:]]).max() <= 1
    assert abstention.distances([points[60:] + off * scale]).min() > 1


def test_of_few_training_images_what_is_far_in_a_direction_of_theirs_is_far():
    """16 points of 40 channels, which lie in as many directions as they are."""
    rng = np.random.default_rng(0)
    train, validation = (rng.normal(size=(number, 40)) for number in (16, 40))
    abstention = Abstention.fit([train], [validation])
    assert abstention.distances([validation]).max() <= 1
    assert abstention.distances([validation + 10 * train[0]]).min() > 1


def test_what_was_fitted_is_what_is_loaded(fitted, tmp_path):
    from safetensors.numpy import save_file

    abstention, rng = fitted
    assert Abstention.load(tmp_path) is None
    save_file(abstention.tensors, tmp_path / FILE)
    points = cloud(rng, 5)
    assert np.array_equal(Abstention.load(tmp_path).distances(points), abstention.distances(points))


def test_stages_of_convolutions_and_of_tokens_are_points_of_channels():
    features = stage_features((torch.rand(2, 3, 8, 8), torch.rand(2, 5, 7)))
    assert [each.shape for each in features] == [(2, 3), (2, 7)]


def test_the_demo_s_model_knows_frames_from_photographs_text_and_noise(demo_model):
    """Simulated frames of both sites against pieces of two photographs, pages of text, noise and plain areas."""
    predictor, rng = Predictor(demo_model), np.random.default_rng(0)
    rows = load_data(phantom_folder())
    frames = [rows[int(index)]["image"].convert("RGB") for index in rng.permutation(len(rows))[:100]]
    strange = [picture for pictures in strange_pictures().values() for picture in pictures]
    far = np.array([predictor.answer([image])[0].distance for image in [*frames, *strange]])
    unlike = np.arange(len(far)) >= len(frames)
    assert roc_auc_score(unlike, far) >= 0.95
    assert (far[~unlike] > 1).mean() <= 0.05
    assert (far[unlike] > 1).mean() >= 0.9

"""Is the saliency true? Tests that a map must pass before anybody may believe it.

- Weights: with the network's weights drawn anew the map must become another one (Adebayo et al., Sanity checks for
  saliency maps, NeurIPS 2018): the rank correlation of the two must fall.
- Deletion and insertion (Petsiuk et al., RISE, BMVC 2018): greying out what the map shows must bring the probability
  down faster, and showing it in a blurred image bring it up faster, than a random map does; a map of edges, which has
  not seen the network, stands beside them.
- Place, where masks of the opacity exist: the pointing game (Zhang et al., Top-down neural attention by excitation
  backprop, IJCV 2018, with its tolerance of 15 pixels) and the share of the map that lies inside the mask.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import PIL.Image
import torch
from datasets import Dataset, Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, sobel
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import interpolate

from space.images import load_image
from space.predictor import BATCH, Predictor
from space.saliency import saliency_maps, scaled_map
from training.listings import is_normal
from training.metric.bootstrap import interval, widened
from training.settle import evenly

SAMPLE = 12  # images for the first two tests, which need many forward passes
RANDOM = 3  # networks with random weights
MASKED = 64  # images for the third
SHARES = (0.05, 0.1, 0.2, 0.4, 0.7)  # of the picture that is deleted or inserted, besides nothing and all
LEAST_GREY = 16  # of a mask's brightest pixel; a darker one holds numbers of what is shown
TOLERANCE = 15  # pixels of the network's input
UNALIKE = 0.5  # rank correlation under which two maps are different ones


def check_saliency(predictor: Predictor, rows: Dataset, table: pd.DataFrame, method: str) -> dict:
    """Test a method on rows and what the model said of them (`measure.predict_rows`).

    Returns method, weights, deletion, insertion and, with masks, place: values with 95 % intervals over groups, whether
    each test was passed, which the images of one group cannot, and `passed`, whether all were.
    """
    chosen = _sample(table, predictor.labels[-1])
    pixels = _pixels(predictor, rows, chosen)
    names = {label: index for index, label in enumerate(predictor.labels)}
    classes = torch.tensor([names[label] for label in table["prediction"].iloc[chosen]], device=pixels.device)
    groups = table["group"].to_numpy()[chosen]
    maps = _maps(predictor.model, pixels, classes, method)
    weights = _weights(predictor.model, pixels, classes, method, maps, groups)
    result = {"method": method, "images": len(chosen), "weights": weights}
    result |= _deletion_and_insertion(predictor, pixels, classes, maps, groups)
    place = _place(predictor, rows, table, method)
    if place:
        result["place"] = place
    result["passed"] = all(test["passed"] for test in result.values() if isinstance(test, dict))
    return result


def _sample(table: pd.DataFrame, positive: str) -> np.ndarray:
    """Indices of images that are called positive, rightly ones first, and others where those do not suffice."""
    called, true = table["prediction"] == positive, table["label"] == positive
    order = np.random.default_rng(0).permutation(len(table))
    rank = np.where(called & true, 0, np.where(called, 1, 2))[order]
    return np.sort(order[np.argsort(rank, kind="stable")][:SAMPLE])


def _pixels(predictor: Predictor, rows: Dataset, chosen: np.ndarray) -> torch.Tensor:
    images = rows.select(chosen).select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
    return predictor.pixel_values([load_image(image) for image in images])


def _maps(model: nn.Module, pixels: torch.Tensor, classes: torch.Tensor, method: str) -> np.ndarray:
    """Maps at the size of the network's input: (images, height, width)."""
    found = [
        saliency_maps(model, pixels[first : first + BATCH], classes[first : first + BATCH], method)
        for first in range(0, len(pixels), BATCH)
    ]
    found = torch.cat(found).float()[:, None]
    return interpolate(found, size=pixels.shape[2:], mode="bicubic", align_corners=False)[:, 0].cpu().numpy()


def _weights(model: nn.Module, pixels, classes, method: str, maps: np.ndarray, groups: np.ndarray) -> dict:
    random, alike = copy.deepcopy(model), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(RANDOM):
            for module in random.modules():
                if isinstance(module, nn.Linear | nn.Conv2d) or hasattr(module, "running_mean"):
                    module.reset_parameters()
            others = _maps(random, pixels, classes, method)
            alike.append([_rank_correlation(one, other) for one, other in zip(maps, others, strict=True)])
    alike = np.ma.masked_invalid(alike).mean(axis=0)
    groups, alike = groups[~np.ma.getmaskarray(alike)], alike.compressed()  # of images for which both show something
    if len(alike) == 0:
        return {"rank_correlation": None, "ci95": None, "passed": False}
    spread = _mean_interval(alike, groups, [-1.0, 1.0])
    return {"rank_correlation": float(alike.mean()), "ci95": spread, "passed": bool(spread[1] < UNALIKE)}


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, of what is positive in two maps, as it is shown; NaN where one of them shows nothing."""
    one, other = (np.maximum(each[::4, ::4], 0).ravel() for each in (one, other))
    return float(spearmanr(one, other)[0]) if np.ptp(one) > 0 and np.ptp(other) > 0 else np.nan


def _deletion_and_insertion(predictor: Predictor, pixels, classes, maps: np.ndarray, groups) -> dict:
    """Mean probability of the called class while more and more is deleted or inserted, by three maps."""
    rng = np.random.default_rng(0)
    grey = pixels.cpu().numpy().mean(axis=1)
    coarse = rng.random((len(maps), 1, 7, 7), np.float32)
    orders = {
        "map": maps,
        "random": interpolate(torch.from_numpy(coarse), size=pixels.shape[2:], mode="bicubic")[:, 0].numpy(),
        "edges": np.stack([gaussian_filter(np.hypot(sobel(each, 0), sobel(each, 1)), 3) for each in grey]),
    }
    blurred = torch.from_numpy(gaussian_filter(pixels.cpu().numpy(), (0, 0, 8, 8))).to(pixels)
    whole, gone, vague = (_confidence(predictor, each, classes) for each in (pixels, torch.zeros_like(pixels), blurred))
    areas: dict[str, dict[str, np.ndarray]] = {"deletion": {}, "insertion": {}}
    for name, order in orders.items():
        ranks = np.stack([np.argsort(np.argsort(-each.ravel(), kind="stable")).reshape(each.shape) for each in order])
        shown = [torch.from_numpy(ranks < share * ranks[0].size)[:, None].to(pixels.device) for share in SHARES]
        deleted = [_confidence(predictor, torch.where(each, 0.0, pixels), classes) for each in shown]
        inserted = [_confidence(predictor, torch.where(each, pixels, blurred), classes) for each in shown]
        areas["deletion"][name] = np.trapezoid([whole, *deleted, gone], [0, *SHARES, 1], axis=0)
        areas["insertion"][name] = np.trapezoid([vague, *inserted, whole], [0, *SHARES, 1], axis=0)
    told = {}
    for test, sign in (("deletion", 1), ("insertion", -1)):
        better = sign * (areas[test]["random"] - areas[test]["map"])
        spread = _mean_interval(better, groups, [-1.0, 1.0])
        told[test] = {name: float(area.mean()) for name, area in areas[test].items()}
        told[test] |= {"better_than_random": float(better.mean()), "ci95": spread, "passed": bool(spread[0] > 0)}
    return told


def _confidence(predictor: Predictor, pixels: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        logits = torch.cat([predictor.model(pixel_values=batch).logits for batch in pixels.split(BATCH)])
    return logits.float().softmax(dim=1)[torch.arange(len(classes)), classes].cpu().numpy()


def _place(predictor: Predictor, rows: Dataset, table: pd.DataFrame, method: str) -> dict | None:
    """Where masks exist: does the map of the image's class point into the opacity, and how much of it lies inside?

    Of two classes, and of a class that is called normal, it is the map of the positive one. A mask that is black all
    over shows no opacity; some masks hold the numbers 1, 2, ... of what is shown, and no grey values.
    """
    if "mask" not in rows.column_names:
        return None
    has = np.flatnonzero(np.asarray(rows["mask"]) != "")
    has = has[evenly(len(has), MASKED)]
    masks = {index: _opacity(file) for index, file in zip(has, rows.select(has)["mask"], strict=True)}
    masks = {index: mask for index, mask in masks.items() if mask.getextrema()[1]}
    if not masks:
        return None
    has = np.array(list(masks))
    pixels = _pixels(predictor, rows, has)
    own = {label: index for index, label in enumerate(predictor.labels)}
    own |= {label: len(own) - 1 for label in own if len(own) == 2 or is_normal(label)}
    classes = torch.tensor([own[label] for label in table["label"].iloc[has]], device=pixels.device)
    size = pixels.shape[:1:-1]
    hits, inside, shares = [], [], []
    for saliency, mask in zip(_maps(predictor.model, pixels, classes, method), masks.values(), strict=True):
        mask = np.asarray(mask.resize(size)) > 127
        shown = scaled_map(saliency, size)
        near = distance_transform_edt(~mask) <= TOLERANCE if mask.any() else mask
        hits.append(float(near.ravel()[shown.argmax()]) if shown.max() > 0 else 0.0)
        inside.append(float(shown[mask].sum() / max(shown.sum(), 1e-12)))
        shares.append((float(mask.mean()), float(near.mean())))
    groups = table["group"].to_numpy()[has]
    pointing, chance = float(np.mean(hits)), float(np.mean(shares, axis=0)[1])
    as_hit = [pointing, pointing]  # by one group; how far it tells of others is for `widened` to say
    spread = widened(_mean_interval(np.array(hits), groups, as_hit), len(set(groups)))
    energy = _mean_interval(np.array(inside), groups, [0.0, 1.0])
    return {
        "images": len(has),
        "pointing_game": pointing,
        "pointing_game_by_chance": chance,
        "energy_inside": float(np.mean(inside)),
        "mask_share": float(np.mean(shares, axis=0)[0]),
        "ci95": {"pointing_game": spread, "energy_inside": energy},
        "passed": bool(spread[0] > chance),
    }


def _opacity(file: str) -> PIL.Image.Image:
    """A mask in black and white: what is brighter than half of its brightest grey, or of numbers is none of 0."""
    mask = load_image(file).convert("L")
    brightest = mask.getextrema()[1]
    cut = brightest // 2 if brightest >= LEAST_GREY else 0
    return mask.point([255 * (value > cut) for value in range(256)])


def _mean_interval(values: np.ndarray, groups: np.ndarray, limits: list[float]) -> list[float]:
    """95 % interval of a mean from a bootstrap over groups; of one group, which tells nothing of others, the limits."""
    groups = np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    if len(sums) == 1:
        return limits
    drawn = np.random.default_rng(0).integers(0, len(sums), (2000, len(sums)))
    return interval(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))

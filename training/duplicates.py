"""Copies of an image: the same pixels, or the same picture after re-encoding, scaling, cropping, brightening, marking.

Two steps. A perceptual hash, the low frequencies of a thumbnail's cosine transform as a point on the unit sphere
(after Zauner, Implementation and benchmarking of perceptual image hash functions, 2010, but real-valued), is looked up
in a k-d tree within a radius, once as it is and once for each of a few crops. Then each pair that was found is
compared: the correlation of what is finer than the hash sees, speckle and edges, tells a copy from a similar picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
import scipy.fft
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from training.fingerprint import SIDE, Fingerprints

FREQUENCIES = 16  # of the transform that are kept, in each direction
AXES = 24  # principal axes of the hash that the index uses
RADIUS = 0.15  # of the search; planted copies lie within 0.14
ALIKE = 0.75  # least correlation of a copy; different pictures of ultrasound and X-ray reach 0.68, planted copies 0.85
SHIFT = 2  # thumbnail pixels that copies may be shifted by
CHUNK = 2048  # images that are transformed at a time

Crop = tuple[float, float, float, float]  # shares cut off: top, bottom, left, right
CROPS: tuple[Crop, ...] = (
    *((share, share, share, share) for share in (0.0, 0.015, 0.03, 0.05)),
    *((top, 0.03 - top, left, 0.03 - left) for top in (0.0, 0.03) for left in (0.0, 0.03)),
    *((0.05, 0.0, 0.0, 0.0), (0.0, 0.05, 0.0, 0.0), (0.0, 0.0, 0.05, 0.0), (0.0, 0.0, 0.0, 0.05)),
)


def find_copies(prints: Fingerprints, turned: bool = False) -> pd.DataFrame:
    """All pairs of copies; of a set of exact ones each with the first. Columns: one, other, kind, likeness.

    Images without structure have no copies: a clip that begins with a black frame is no copy of another that does.
    """
    pixels = prints.facts["pixels"].where(_structured(prints.thumbnails), "")
    first: dict[str, int] = {}
    pairs = [(first.setdefault(value, index), index) for index, value in enumerate(pixels) if value]
    exact = [(one, other) for one, other in pairs if one != other]
    near, likeness = near_copies(prints.thumbnails, turned, [other for _, other in exact])
    rows = [(one, other, "exact", 1.0) for one, other in exact]
    rows += [(one, other, "near", float(alike)) for (one, other), alike in zip(near.tolist(), likeness, strict=True)]
    return pd.DataFrame(sorted(rows), columns=["one", "other", "kind", "likeness"])


def near_copies(
    thumbnails: np.ndarray, turned: bool = False, passed_over: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Find copies among thumbnails (n, SIDE, SIDE), grey 0-255.

    turned: find mirrored and rotated copies, too. passed_over: indices of images that are left out. Returns pairs of
    indices (pairs, 2), the lower one first, and their correlations (pairs,), sorted by pair. Images without structure
    have no copies.
    """
    structured = np.flatnonzero(_structured(thumbnails))
    usable = np.setdiff1d(structured, passed_over)
    if len(usable) < 2:
        return np.empty((0, 2), int), np.empty(0)
    axes = _principal_axes(thumbnails, structured)
    index = cKDTree(_hashes(thumbnails, usable, CROPS[0], 0, axes), leafsize=64)
    pairs, alike = np.empty((0, 2), int), np.empty(0)
    for turn in range(8 if turned else 1):
        found, distances = np.empty((0, 3), int), np.empty(0)
        for number, crop in enumerate(CROPS):
            hits, apart = _search(index, _hashes(thumbnails, usable, crop, turn, axes))
            found = np.concatenate([found, np.column_stack([hits, np.full(len(hits), number)])])
            distances = np.concatenate([distances, apart])
            nearest = _first_of_each_pair(found, distances)
            found, distances = found[nearest], distances[nearest]
        likeness = _correlations(thumbnails, usable[found[:, :2]], found[:, 2], turn)
        pairs = np.concatenate([pairs, usable[found[likeness >= ALIKE, :2]]])
        alike = np.concatenate([alike, likeness[likeness >= ALIKE]])
    likest = _first_of_each_pair(pairs, -alike)
    return np.sort(pairs[likest], axis=1), alike[likest]


def _search(index: cKDTree, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (point, indexed one) of different numbers within RADIUS, and their distances."""
    hits, distances = [], []
    for start in range(0, len(points), CHUNK // 8):
        near = index.query_ball_point(points[start : start + CHUNK // 8], RADIUS, workers=-1, return_sorted=False)
        ones = np.repeat(np.arange(start, start + len(near)), [len(others) for others in near])
        others = np.fromiter(chain.from_iterable(near), int, len(ones))
        ones, others = ones[ones != others], others[ones != others]
        hits.append(np.column_stack([ones, others]))
        distances.append(np.linalg.norm(points[ones] - index.data[others], axis=1))
    return np.concatenate(hits), np.concatenate(distances)


def _first_of_each_pair(found: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of the rows that begin with the same two indices, in whatever order, the number of the one first in `order`;
    sorted by pair."""
    low, high = np.sort(found[:, :2], axis=1).T
    sorted_rows = np.lexsort((order, high, low))
    low, high = low[sorted_rows], high[sorted_rows]
    new = np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])][: len(found)]
    return sorted_rows[new]


def _structured(thumbnails: np.ndarray) -> np.ndarray:
    starts = range(0, len(thumbnails), CHUNK)
    return np.concatenate([thumbnails[start : start + CHUNK].std(axis=(1, 2)) > 2 for start in starts])


def _turn(images: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight ways to lay a square: turn % 4 quarter turns, mirrored from 4 on."""
    images = images[:, :, ::-1] if turn >= 4 else images
    return np.rot90(images, turn % 4, axes=(1, 2))


def _resampling(before: float, after: float) -> np.ndarray:
    """The matrix (SIDE, SIDE) that cuts shares off a line of pixels and stretches the rest to the full length."""
    places = ((np.arange(SIDE) + 0.5) / SIDE * (1 - before - after) + before) * SIDE - 0.5
    low = np.clip(np.floor(places).astype(int), 0, SIDE - 2)
    share = np.clip(places - low, 0, 1)
    matrix = np.zeros((SIDE, SIDE), np.float32)
    matrix[np.arange(SIDE), low] = 1 - share
    matrix[np.arange(SIDE), low + 1] += share
    return matrix


def _spectra(images: np.ndarray, crop: Crop) -> np.ndarray:
    """Low frequencies of cropped images, without their mean, at length 1: (n, FREQUENCIES**2 - 1)."""
    transform = scipy.fft.dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:FREQUENCIES]
    rows, columns = transform @ _resampling(*crop[:2]), transform @ _resampling(*crop[2:])
    spectra = (rows @ images.astype(np.float32) @ columns.T).reshape(len(images), -1)[:, 1:]
    return spectra / np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-6)


def _principal_axes(thumbnails: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The AXES directions in which the hashes of (at most some thousands of) the images differ most; few images do so
    in fewer directions, so their crops have a say there."""
    sample = usable[np.linspace(0, len(usable) - 1, min(len(usable), 4096)).astype(int)]
    crops = CROPS if len(sample) < 2 * AXES else CROPS[:1]
    spectra = np.concatenate([_spectra(thumbnails[sample], crop) for crop in crops])
    return np.linalg.svd(spectra - spectra.mean(axis=0), full_matrices=False)[2][:AXES].T


def _hashes(thumbnails: np.ndarray, usable: np.ndarray, crop: Crop, turn: int, axes: np.ndarray) -> np.ndarray:
    chunks = np.array_split(usable, range(CHUNK, len(usable), CHUNK))
    return np.concatenate([_spectra(_turn(thumbnails[chunk], turn), crop) @ axes for chunk in chunks])


def _correlations(thumbnails: np.ndarray, pairs: np.ndarray, crops: np.ndarray, turn: int) -> np.ndarray:
    """Correlation of the fine structure of pairs (n, 2), the first one cropped and turned, at the best small shift."""
    result = np.zeros(len(pairs))
    for number, crop in enumerate(CROPS):
        chosen = np.flatnonzero(crops == number)
        rows, columns = _resampling(*crop[:2]), _resampling(*crop[2:])
        for chunk in np.array_split(chosen, range(CHUNK // 4, len(chosen), CHUNK // 4)):
            first = rows @ _turn(thumbnails[pairs[chunk, 0]], turn).astype(np.float32) @ columns.T
            second = thumbnails[pairs[chunk, 1]].astype(np.float32)
            spectrum = scipy.fft.rfft2(_fine(first), workers=-1).conj() * scipy.fft.rfft2(_fine(second), workers=-1)
            shifted = np.roll(scipy.fft.irfft2(spectrum, workers=-1), (SHIFT, SHIFT), axis=(1, 2))
            result[chunk] = shifted[:, : 2 * SHIFT + 1, : 2 * SHIFT + 1].max(axis=(1, 2), initial=0)
    return result


def _fine(images: np.ndarray) -> np.ndarray:
    fine = images - gaussian_filter(images, (0, 2, 2))
    return fine / np.maximum(np.linalg.norm(fine, axis=(1, 2), keepdims=True), 1e-6)

"""Sites of the phantom that were drawn by chance: far more kinds of machine, operator and patient than exist.

What is learned from many of them holds at places that none of them is like (domain randomisation: Tobin et al., IROS
2017). They have signs that sites A and B lack: white lung, broad beams, a rough, thick, broken pleura with patches of
small consolidations below it, deep and shallow chests, fluid and consolidations that fill the picture, poor contact
that leaves half of it dark; and frames that were cut out of the sector, smoothed, or are shown on another curve of grey
values. How fine and strong the speckle is, how bright the chest wall and how large the findings was set beside real
frames of one site.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from training.anatomy import Anatomy, Lesion, draw_anatomy, waviness

Range = tuple[float, float]
FRAMES = {"normal": 1, "sick": 1}  # of each site: rather more sites than more frames


@dataclass(frozen=True)
class Site:
    """How the machines of one place are set: every range is drawn from once a patient, whatever the label."""

    frames: dict[str, int]  # label -> number; "" for the unknown ones
    linear_share: float  # of patients seen with a linear probe, the others with a convex one
    convex: dict[str, Range]  # depth, aperture, radius, focus, axial, lateral: see Probe
    linear: dict[str, Range]
    dynamic_range: Range
    noise: Range
    tgc_slope: Range
    smoothing: Range
    brightness: Range
    size: Range  # longest side of the scanned area in pixels
    margin: Range  # black border, as a share of the size
    marks: tuple[str, ...]  # burned in: ticks, bar, or a text
    cut: Range = (0, 0)  # how much of a side is cut off, as a share
    gamma: Range = (1, 1)  # of the curve that grey values are shown on
    calmed: Range = (0, 0)  # how much of the finished picture's speckle is taken away, as a share
    varied: bool = False  # drawn by chance: patients of more kinds than at sites A and B, and looks

    def draw_look(self, rng: np.random.Generator) -> Look:
        return Look(*rng.uniform(*self.cut, 3), rng.uniform(*self.gamma), rng.uniform(*self.calmed), rng.uniform(2, 5))


class Look(NamedTuple):
    """What is made of a finished frame.

    Shares of the width and height that are cut off; the exponent of the curve of grey values; the share of the speckle
    that is taken away, as that which differs from a mean over so many pixels (of a picture whose longer side has 400).
    """

    left: float = 0.0
    right: float = 0.0
    bottom: float = 0.0
    gamma: float = 1.0
    calmed: float = 0.0
    reach: float = 3.0

    def cut(self, picture: np.ndarray) -> np.ndarray:
        rows, columns = picture.shape
        sides = slice(int(self.left * columns), columns - int(self.right * columns))
        return picture[: rows - int(self.bottom * rows), sides]

    def finish(self, frame: np.ndarray) -> np.ndarray:
        if self.calmed:
            mean = gaussian_filter(frame.astype(np.float32), self.reach * max(frame.shape) / 400)
            frame = (frame + self.calmed * (mean - frame)).round().astype(np.uint8)
        return ((np.arange(256) / 255) ** self.gamma * 255).round().astype(np.uint8)[frame]


def draw_site(rng: np.random.Generator) -> Site:
    """Draw a site: each setting has a value of the place, and a small range around it from patient to patient."""

    def around(low: float, high: float, width: float = 0.25) -> Range:
        middle, half = rng.uniform(low, high), (high - low) * width / 2
        return max(low, middle - half), min(high, middle + half)

    texts = ["".join(rng.choice(list("ABCDEFGHILMNOPRSTUX0123456789.:- "), rng.integers(4, 20))) for _ in range(2)]
    return Site(
        frames=FRAMES,
        linear_share=float(rng.choice([0.0, 0.2, 0.5])),
        convex=dict(
            depth=around(60, 200),
            aperture=around(22, 44),
            radius=around(8, 65),
            focus=around(15, 110),
            axial=around(0.1, 0.45),
            lateral=around(0.3, 1.5),
        ),
        linear=dict(
            depth=around(35, 100),
            aperture=around(17, 28),
            radius=(0, 0),
            focus=around(10, 45),
            axial=around(0.06, 0.25),
            lateral=around(0.15, 0.6),
        ),
        dynamic_range=around(36, 80),
        noise=around(38, 64),
        tgc_slope=around(-0.2, 0.12),
        smoothing=around(0, 1.6),
        brightness=around(0.08, 0.38, width=0.4),
        size=around(160, 440),
        margin=(0, rng.choice([0.0, 0.05, 0.15])),
        marks=tuple(mark for mark in ("ticks", "bar", *texts) if rng.random() < 0.3),
        cut=(0, rng.choice([0.0, 0.1, 0.25])),
        gamma=around(0.7, 1.5),
        calmed=around(0.2, 0.9),
        varied=True,
    )


def draw_varied_anatomy(rng: np.random.Generator, finding: str) -> Anatomy:
    """As `draw_anatomy`, with other depths and hazes, a fainter and rougher chest wall, larger findings, more looks of
    B-lines, and the patches of viral disease.

    A-lines are as common between B-lines as in healthy lungs, so that they excuse nothing: in COVID-19 the sick places
    have spared ones beside them (Volpicelli and Gargani, Sonographic signs and patterns of COVID-19 pneumonia,
    Ultrasound J. 2020, 12:22; Soldati et al., J. Ultrasound Med. 2020, 39:1413-1419).
    """
    anatomy = draw_anatomy(rng, finding)
    a_lines = anatomy.a_lines if rng.random() < 0.6 else -60.0
    if finding == "b-lines":
        a_lines = rng.uniform(-22, -8) if rng.random() < 0.5 else -60.0
    streaks = waviness(rng, rng.uniform(1, 14), rng.uniform(8, 24))  # that are no B-lines
    if rng.random() < 0.4:  # a large part of the face without contact
        streaks = waviness(rng, rng.uniform(4, 24), rng.uniform(30, 90))
    changed = replace(
        anatomy,
        pleura=rng.uniform(7, 38),
        pleura_level=rng.uniform(10, 28),
        pleura_thickness=rng.uniform(0.25, 0.7),
        haze=rng.uniform(-10, 8),
        haze_decay=rng.uniform(0.02, 0.4),
        a_lines=a_lines,
        a_line_width=rng.uniform(7, 40),
        contact=streaks,
        layers=[
            (at, level - rng.uniform(0, 16), waviness(rng, rng.uniform(0.2, 2), rng.uniform(15, 50)))
            for at, level, _ in anatomy.layers
        ],
        lesions=[_grown(rng, lesion) for lesion in anatomy.lesions],
    )
    if finding != "b-lines":
        return changed
    pattern = rng.choice(("rays", "light beam", "white lung", "patches"), p=(0.3, 0.15, 0.2, 0.35))
    if pattern == "light beam":  # one broad band below a pleura that may be smooth
        return replace(changed, lesions=_rays(rng, rng.normal(0, 9), rng.uniform(3, 8), rng.integers(3, 7), (2, 5)))
    if pattern == "patches":
        lesions = [lesion for _ in range(rng.integers(1, 4)) for lesion in _patch(rng, rng.normal(0, 14))]
    else:
        lesions = list(changed.lesions)
        if pattern == "white lung":  # rays that run into one another
            lesions += _rays(rng, rng.normal(0, 8), rng.uniform(8, 30), rng.integers(5, 14), (3, 12))
    return replace(
        changed,
        lesions=lesions,
        relief=waviness(rng, rng.uniform(0.3, 1.8), rng.uniform(10, 30)),
        pleura_gaps=waviness(rng, rng.uniform(1, 14), rng.uniform(5, 14)),
        pleura_thickness=rng.uniform(0.25, 1.4),
    )


def _grown(rng, lesion: Lesion) -> Lesion:
    """A consolidation or an effusion up to twice as wide and deep; B-lines as they are."""
    if lesion.kind == "b-lines":
        return lesion
    return replace(lesion, width=lesion.width * rng.uniform(1, 2), depth=lesion.depth * rng.uniform(1, 2.2))


def _patch(rng, middle: float) -> list[Lesion]:
    """A sick place beside spared ones: most often a small consolidation below the pleura, and rays that start there."""
    width = rng.uniform(4, 14)
    rays = _rays(rng, middle, width / 2, rng.integers(1, 4), (1, 4))
    if rng.random() < 0.3:
        return rays
    return [_lesion(rng, "consolidation", middle, width, rng.uniform(2, 7), rng.uniform(-16, -2)), *rays]


def _rays(rng, middle: float, spread: float, count: int, widths: Range) -> list[Lesion]:
    places = middle + rng.uniform(-spread, spread, count)
    fade = rng.uniform(0, 0.2)
    return [_lesion(rng, "b-lines", u, rng.uniform(*widths), 0.0, rng.uniform(4, 16), fade) for u in places]


def _lesion(rng, kind: str, u: float, width: float, depth: float, level: float, fade: float = 0.03) -> Lesion:
    edge = waviness(rng, rng.uniform(0.3, 1.5), 10)
    return Lesion(kind, u, width, depth, level, edge, int(rng.integers(2**31)), fade)

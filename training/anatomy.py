"""A patient of the phantom: what lies under the probe, in mm along the pleura and dB, drawn from mild to severe.

Chest-wall layers, ribs, the pleural line; below it A-lines (normal) or B-lines, subpleural consolidation and pleural
effusion (sick). The signs follow Volpicelli et al., International evidence-based recommendations for point-of-care lung
ultrasound, Intensive Care Medicine 2012, 38:577-591.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

FINDINGS = ("b-lines", "consolidation", "effusion")


@dataclass(frozen=True)
class Waviness:
    """A smooth random function of the lateral position: a sum of sines, so that it can be looked at from anywhere."""

    amplitudes: np.ndarray
    wavelengths: np.ndarray
    phases: np.ndarray

    def __call__(self, u: np.ndarray) -> np.ndarray:
        terms = zip(self.amplitudes, self.wavelengths, self.phases, strict=True)
        waves = (amplitude * np.sin(2 * np.pi * u / wavelength + phase) for amplitude, wavelength, phase in terms)
        return sum(waves).astype(np.float32)


def waviness(rng: np.random.Generator, amplitude: float, wavelength: float, terms: int = 4) -> Waviness:
    """Draw a Waviness of about this amplitude with wavelengths of 0.5-2 times the one given (mm)."""
    return Waviness(
        amplitude * rng.uniform(0.3, 1, terms) / np.sqrt(terms),
        wavelength * rng.uniform(0.5, 2, terms),
        rng.uniform(0, 2 * np.pi, terms),
    )


@dataclass(frozen=True)
class Lesion:
    """One sign of disease at a lateral position `u` (mm along the pleura)."""

    kind: str  # one of FINDINGS
    u: float
    width: float  # mm
    depth: float  # mm below the pleura; B-lines reach the bottom
    level: float  # dB above the haze at the pleura (B-lines) or relative to the chest wall (others)
    edge: Waviness
    seed: int
    fade: float = 0.03  # dB per mm that a B-line loses on its way down


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest at one place of the probe."""

    seed: int
    label: str
    finding: str  # regular, or one of FINDINGS
    pleura: float  # depth in mm
    flatness: float  # 0: the pleura follows the probe, 1: it is straight
    tilt: float  # mm per mm
    relief: Waviness
    pleura_level: float
    pleura_gaps: Waviness  # how broken the line is
    layers: list[tuple[float, float, Waviness]]  # (fraction of the pleura's depth, dB, form)
    ribs: list[tuple[float, float, float]]  # (u, half width in mm, dB of shadow)
    contact: Waviness  # dB lost where the probe's face touches badly
    contact_edge: float  # dB lost at the ends of the face
    a_lines: float  # dB of the first one relative to the pleural line
    a_line_centre: float
    a_line_width: float
    haze: float  # dB of the reverberation below the pleura relative to the chest wall
    haze_decay: float  # dB per mm
    comet_tails: list[tuple[float, float, float]] = field(default_factory=list)  # (u, length in mm, dB)
    lesions: list[Lesion] = field(default_factory=list)
    pleura_thickness: float = 0.35  # mm, standard deviation


def draw_anatomy(rng: np.random.Generator, finding: str) -> Anatomy:
    """Draw a patient: `finding` is "regular" or one of FINDINGS; each is drawn from mild to severe."""
    sick = finding != "regular"
    spacing, first = rng.uniform(24, 34), rng.uniform(-17, 17)
    ribs = []
    if rng.random() < 0.75:
        depth_of_shadow = rng.uniform(14, 38)
        ribs = [(first + k * spacing, rng.uniform(4.5, 8), depth_of_shadow) for k in range(-3, 4)]
    layers = [
        (at, rng.uniform(6, 18), waviness(rng, rng.uniform(0.2, 0.9), 40))
        for at in np.sort(rng.uniform(0.12, 0.9, rng.integers(3, 8)))
    ]
    return Anatomy(
        seed=int(rng.integers(2**31)),
        label="sick" if sick else "normal",
        finding=finding,
        pleura=rng.uniform(14, 30),
        flatness=rng.uniform(0.2, 1),
        tilt=rng.normal(0, 0.06),
        relief=waviness(rng, rng.uniform(0.2, 1.1 if sick else 0.8), 30),
        pleura_level=rng.uniform(16, 26),
        pleura_gaps=waviness(rng, rng.uniform(1, 8 if sick else 5), 12),
        layers=layers,
        ribs=ribs,
        contact=waviness(rng, rng.uniform(1, 5), 16),
        contact_edge=rng.exponential(9),
        a_lines=rng.uniform(-22, -8) if rng.random() < (0.35 if sick else 0.85) else -60.0,
        a_line_centre=rng.normal(0, 8),
        a_line_width=rng.uniform(7, 22),
        haze=rng.uniform(-8, 4),
        haze_decay=rng.uniform(0.06, 0.34),
        comet_tails=[(rng.uniform(-25, 25), rng.uniform(8, 45), rng.uniform(5, 14)) for _ in range(rng.integers(0, 4))],
        lesions=_draw_lesions(rng, finding),
    )


def _draw_lesions(rng: np.random.Generator, finding: str) -> list[Lesion]:
    def lesion(kind, u, width, depth, level, edge):
        return Lesion(kind, u, width, depth, level, edge, int(rng.integers(2**31)))

    def b_lines(count):
        middle = rng.normal(0, 7)
        return [
            lesion(
                "b-lines",
                middle + rng.uniform(-16, 16),
                rng.uniform(1.0, 2.4) if rng.random() < 0.75 else rng.uniform(4, 11),
                0.0,
                rng.uniform(6, 16),
                waviness(rng, 0.3, 20),
            )
            for _ in range(count)
        ]

    if finding == "b-lines":
        return b_lines(int(rng.integers(2, 6)))
    if finding == "consolidation":
        lesions = [
            lesion(
                finding,
                rng.normal(0, 8),
                rng.uniform(12, 40),
                rng.uniform(9, 34),
                rng.uniform(-19, -6),
                waviness(rng, rng.uniform(2, 6), 9),
            )
            for _ in range(1 + (rng.random() < 0.25))
        ]
        return lesions + b_lines(int(rng.integers(0, 3)))
    if finding == "effusion":
        return [
            lesion(
                finding,
                rng.uniform(-14, 14),
                rng.uniform(18, 45),
                rng.uniform(12, 45),
                rng.uniform(-42, -26),
                waviness(rng, rng.uniform(1.5, 5), 14, terms=8),
            )
        ]
    return []

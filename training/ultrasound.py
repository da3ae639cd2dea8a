"""A simulator of lung-ultrasound frames: one patient's chest, seen by one probe, as a grey picture and a truth mask.

Everything is drawn in beam coordinates (rows: depth in mm, columns: beams) as echo strength in decibels, then turned
into speckle and scan-converted:

1. anatomy: the chest wall, ribs with shadows, the pleural line and what lies below it (training/anatomy.py).
2. speckle: complex Gaussian scatterers under the echo strength, filtered by a Gaussian point-spread function that
   widens away from the focus; the envelope is Rayleigh distributed (Wagner et al., Statistics of speckle in
   ultrasound B-scans, IEEE Trans. Sonics Ultrason. 1983, 30:156-163).
3. machine: time-gain slope, noise floor, log compression to a dynamic range, gain set so that the mean brightness is
   what the operator wanted (so brightness tells nothing of the label), scan conversion to a sector or a rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from training.anatomy import Anatomy

SAMPLES, BEAMS = 448, 160  # size of the beam grid: depth samples x beams


@dataclass(frozen=True)
class Probe:
    """A transducer and its settings. Lengths are in mm, angles in degrees, levels in dB."""

    geometry: str  # convex | linear
    depth: float  # of the picture
    aperture: float  # convex: half the opening angle; linear: half the width
    radius: float  # of a convex probe's face; not used when linear
    focus: float  # depth of the narrowest beam
    axial: float  # standard deviation of the pulse
    lateral: float  # standard deviation of the beam at the focus
    dynamic_range: float
    noise: float  # noise floor below the brightest echo
    tgc_slope: float  # dB per mm left over after time-gain compensation
    smoothing: float  # speckle reduction, pixels of the beam grid
    brightness: float  # wanted mean grey of the scanned area, 0-1


def simulate(
    anatomy: Anatomy, probe: Probe, rng: np.random.Generator, shift: float = 0.0, breath: float = 0.0, size: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """See a chest through a probe.

    shift moves the probe sideways and breath the pleura in depth (mm); rng draws what changes from frame to frame.
    Returns the frame and the mask of its opacities: two uint8 arrays of one shape whose longest side is `size`,
    grey values 0-255 and 0 or 255.
    """
    depth, across, u, pleura = _beams(anatomy, probe, shift, breath)
    diffuse, specular = _chest_wall(anatomy, probe, depth, u, pleura)
    mask, shadow = _draw_signs(anatomy, diffuse, specular, depth, u, pleura)
    shadow += anatomy.contact(u).clip(0, None) + anatomy.contact_edge * across**4

    envelope = _speckle(anatomy, probe, _noise(rng), diffuse - shadow, specular - shadow, depth, shift, u)
    grey = _compress(envelope, probe, depth)
    pixels = _pixels(probe, size)
    return (_sample(grey, pixels) * 255).round().clip(0, 255).astype(np.uint8), _opacity(mask, pixels)


def outline(anatomy: Anatomy, probe: Probe, rng: np.random.Generator, size: int = 400) -> np.ndarray:
    """The mask that `simulate` gives, without drawing the frame; rng is left as that leaves it."""
    _noise(rng)
    depth, _, u, pleura = _beams(anatomy, probe)
    mask, _ = _draw_signs(anatomy, *np.zeros((2, SAMPLES, BEAMS), np.float32), depth, u, pleura)
    return _opacity(mask, _pixels(probe, size))


def _beams(anatomy, probe, shift=0.0, breath=0.0):
    """Where the beams go: depth (SAMPLES, 1) in mm, and of each beam where it is across the probe's face (-1 to 1), its
    lateral position and the depth of the pleura in mm (BEAMS,)."""
    depth = np.linspace(0, probe.depth, SAMPLES, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, BEAMS, dtype=np.float32)
    if probe.geometry == "convex":
        angle = across * np.deg2rad(probe.aperture)
        u = (probe.radius + anatomy.pleura) * angle
        straight = (probe.radius + anatomy.pleura) / np.cos(angle) - probe.radius
    else:
        u = across * probe.aperture
        straight = np.full(BEAMS, anatomy.pleura, np.float32)
    pleura = anatomy.pleura + anatomy.flatness * (straight - anatomy.pleura) + breath
    u = (u + shift).astype(np.float32)
    return depth, across, u, (pleura + anatomy.tilt * u + anatomy.relief(u)).clip(5, None)


def _noise(rng):
    """What differs from frame to frame: scatterers that move, and the machine's own noise (2, SAMPLES, BEAMS)."""
    return rng.standard_normal((2, SAMPLES, BEAMS), np.float32)


def _draw_signs(anatomy, diffuse, specular, depth, u, pleura):
    """Write lesions and ribs into the echo strengths, in place; where the opacities are, and the ribs' shadow (dB)."""
    mask = np.zeros((SAMPLES, BEAMS), bool)
    for lesion in anatomy.lesions:
        mask |= _add_lesion(lesion, diffuse, specular, anatomy.haze, depth, u, pleura)
    shadow = _rib_shadows(anatomy, specular, depth, u, pleura)
    mask &= shadow < 10
    return mask, shadow


def _line(depth: np.ndarray, at: np.ndarray, thickness: float) -> np.ndarray:
    """dB of a thin reflector with a Gaussian profile: 0 on the line, falling off with the square of the distance."""
    distance = (depth - at) / thickness
    distance *= distance
    distance *= -4.34
    return np.maximum(distance, -90, out=distance)


def _chest_wall(anatomy, probe, depth, u, pleura):
    """Echo strength (dB) of a lung without disease: (diffuse, specular), both SAMPLES x BEAMS."""
    stripes, rough = _tissue(anatomy.seed, probe.depth / SAMPLES)
    below = depth > pleura
    under = depth - pleura
    diffuse = np.where(below, anatomy.haze - anatomy.haze_decay * under + 0.25 * stripes, stripes)
    specular = np.full_like(diffuse, -90)
    for fraction, level, form in anatomy.layers:
        line = level + 4 * form(u * 2.3) + _line(depth, fraction * pleura + form(u), 0.2)
        specular = np.maximum(specular, np.where(below, -90, line))
    specular = np.maximum(specular, 17 - 8 * depth + 6 * np.cos(2 * np.pi * depth / 1.1))  # the probe's own ringing

    gaps = (anatomy.pleura_gaps(u) - 2).clip(0, None)
    facing = -1.5 * (np.gradient(pleura, u) / 0.25) ** 2  # a slanted mirror sends the echo elsewhere
    level = anatomy.pleura_level + facing - 2 * gaps
    specular = np.maximum(specular, level + _line(depth, pleura, anatomy.pleura_thickness))
    spread = -4.34 * ((u - anatomy.a_line_centre) / anatomy.a_line_width) ** 2
    for k in range(2, 7):
        repeat = level + anatomy.a_lines - 5.5 * (k - 2) + spread
        specular = np.maximum(specular, repeat + _line(depth, k * pleura, 0.3 + 0.12 * k))
    for at, length, strength in anatomy.comet_tails:
        tail = strength - 12 * under / length - 4.34 * ((u - at) / 1.1) ** 2
        diffuse = np.where(below, np.maximum(diffuse, diffuse + tail.clip(0, None)), diffuse)
    specular += rough
    return diffuse.astype(np.float32), specular.astype(np.float32)


@lru_cache(maxsize=64)  # of the patients whose frames are drawn just now
def _tissue(seed: int, mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A patient's texture (dB), for samples of so many mm: stripes of the chest wall, and roughness of reflectors."""
    texture = np.random.default_rng(seed + 1).standard_normal((SAMPLES, BEAMS), np.float32)
    stripes = gaussian_filter(texture, (0.5 / mm, 9))
    stripes *= 6 / stripes.std()
    rough = gaussian_filter(texture[::-1], (0.8 / mm, 2.5))
    return stripes, 5 * rough / rough.std()


@lru_cache(maxsize=64)
def _scatterers(seed: int) -> np.ndarray:
    """A patient's own scatterers: real and imaginary part (2, SAMPLES, BEAMS)."""
    return np.random.default_rng(seed).standard_normal((2, SAMPLES, BEAMS), np.float32)


def _add_lesion(lesion, diffuse, specular, haze, depth, u, pleura):
    """Write a lesion into the echo strengths, in place, and return where it is (bool, SAMPLES x BEAMS)."""
    rng = np.random.default_rng(lesion.seed)
    under = depth - pleura
    if lesion.kind == "b-lines":
        inside = np.zeros(diffuse.shape, bool)
        near = _beams_of_ray(lesion, haze + lesion.level + 2 - diffuse.min(), under, u)
        under = depth - pleura[near]
        ring = 2.0 * np.cos(2 * np.pi * under / rng.uniform(0.9, 1.8))
        width = lesion.width * (1 + 0.006 * under.clip(0, None))
        profile = -4.34 * ((u[near] - lesion.u - lesion.edge(under)) / width) ** 2
        ray = np.where(under > 0, haze + lesion.level + profile + ring - lesion.fade * under, -90)
        inside[:, near] = (under > 0) & (profile > -4.34)
        diffuse[:, near] = np.maximum(diffuse[:, near], ray)
        specular[inside] -= 12  # a B-line wipes out the A-lines
        return inside

    texture = gaussian_filter(rng.standard_normal(diffuse.shape, np.float32), (2, 3))
    texture /= texture.std()
    if lesion.kind == "consolidation":
        arch = 1 - np.abs((u - lesion.u) / (lesion.width / 2)) ** 3
        bottom = pleura + np.where(arch > 0, lesion.depth * arch.clip(0, None) ** 0.6 + lesion.edge(u), 0)
        inside = (under > 0) & (depth < bottom)
        diffuse[inside] = lesion.level + 2 * texture[inside]
        specular[inside] -= 16
        air = gaussian_filter(rng.standard_normal(diffuse.shape, np.float32), (2, 2.5))
        bronchograms = inside & (air > rng.uniform(1.3, 2.2) * air.std()) & (under > 2)
        diffuse[bronchograms] = rng.uniform(8, 16)
        beyond = (depth >= bottom) & (arch > 0)
        shred = rng.uniform(8, 16) + _line(depth, bottom, 0.6) + 8 * texture
        np.maximum(specular, np.where(beyond, shred, -90), out=specular)
        rays = rng.uniform(2, 9) + 2.5 * texture[100] - rng.uniform(0.05, 0.15) * (depth - bottom)
        diffuse[beyond] = np.maximum(diffuse, rays)[beyond]
        return inside

    side = np.sign(lesion.u) or 1.0  # fluid collects on one side of the picture and thins out to the other
    wedge = (1 - ((u - lesion.u) * -side / lesion.width).clip(0, 1) ** 2) * lesion.depth
    bottom = pleura + np.where(wedge > 0.6, wedge + lesion.edge(u), 0).clip(0, None)
    inside = (under > 0.8) & (depth < bottom)
    diffuse[inside] = lesion.level + texture[inside]
    specular[inside] -= 26
    beyond = (depth >= bottom) & (wedge > 0.6)
    lung = rng.uniform(10, 20) + _line(depth, bottom, 0.6) + 3 * lesion.edge(u * 3) + 6 * texture
    np.maximum(specular, np.where(wedge > 0.6, lung, -90), out=specular)
    tissue = rng.uniform(2, 14) - rng.uniform(0.1, 0.3) * (depth - bottom) + 0.3 * diffuse + 2 * texture
    diffuse[beyond] = tissue[beyond]
    return inside


def _beams_of_ray(lesion, height, under, u):
    """The beams that a B-line can be brighter in than what is there, when it is so many dB above the darkest of it."""
    widest = lesion.width * (1 + 0.006 * max(under.max(), 0))
    reach = widest * np.sqrt(max(height, 4.34) / 4.34) + lesion.edge.amplitudes.sum()
    return slice(*np.searchsorted(u, (lesion.u - reach, lesion.u + reach)))


def _rib_shadows(anatomy, specular, depth, u, pleura):
    """Write the ribs' bright caps, in place, and return the shadow below them in dB (SAMPLES x BEAMS)."""
    shadow = np.zeros_like(specular)
    if anatomy.ribs:
        np.maximum(specular, -90, out=specular)
    for at, half_width, dark in anatomy.ribs:
        across = (u - at) / half_width
        edge = 0.5 - 0.5 * np.tanh(4.5 * (np.abs(across) - 0.95))
        near = np.flatnonzero(edge)
        if not len(near):
            continue
        near = slice(near[0], near[-1] + 1)
        across, edge = across[near], edge[near]
        cap = pleura[near] - 8 + 4 * across**2
        line = 13 - 10 * across**2 + _line(depth, cap, 0.45)
        specular[:, near] = np.maximum(specular[:, near], np.where(np.abs(across) < 1, line, -90))
        behind = ((depth - cap - 1.2) / 2.5).clip(0, 1)
        shadow[:, near] = np.maximum(shadow[:, near], dark * edge * behind)
    return shadow


def _speckle(anatomy, probe, fresh, diffuse, specular, depth, shift, u):
    """Envelope of the echoes: scatterers of the patient, moved with the probe, mixed with this frame's own."""
    mm = probe.depth / SAMPLES
    beam = abs(u[-1] - u[0]) / BEAMS
    own = np.roll(_scatterers(anatomy.seed), -round(shift / beam), axis=2)
    scatterers = 0.75 * own + 0.66 * fresh
    amplitude = 10 ** (diffuse / 20)
    mirror = 10 ** (specular / 20) * (1 + 0.35 * scatterers[1])
    field = np.stack([scatterers[0] * amplitude + 2.2 * mirror, scatterers[1] * amplitude])
    field = gaussian_filter1d(field, probe.axial / mm, axis=1, mode="nearest")
    narrow = gaussian_filter1d(field, probe.lateral / beam, axis=2, mode="nearest")
    wide = gaussian_filter1d(field, 3 * probe.lateral / beam, axis=2, mode="nearest")
    out_of_focus = (np.abs(depth - probe.focus) / probe.depth).clip(0, 1)
    field = (1 - out_of_focus) * narrow + out_of_focus * wide * 1.7
    floor = 10 ** (-probe.noise / 20) * np.percentile(np.abs(field), 99.5)
    return np.hypot(field[0] + floor * fresh[1], field[1] + floor * fresh[0])


def _compress(envelope, probe, depth):
    """Log-compress to grey values 0-1 with the gain that gives the probe's mean brightness."""
    decibels = 20 * np.log10(envelope + 1e-9) + probe.tgc_slope * depth
    if probe.smoothing:
        decibels = gaussian_filter(decibels, probe.smoothing)
    low, high = decibels.min() - probe.dynamic_range, decibels.max() + probe.dynamic_range
    grey = np.empty_like(decibels)
    for _ in range(24):  # bisection: brightness falls as the level of black rises
        black = (low + high) / 2
        np.subtract(decibels, black, out=grey)
        grey /= probe.dynamic_range
        grey.clip(0, 1, out=grey)
        low, high = (black, high) if grey.mean() > probe.brightness else (low, black)
    return grey**1.15


def _pixels(probe, size):
    """Scan conversion: where on the beam grid each pixel is (2, height, width), of a sector for convex probes, of a
    rectangle for linear ones."""
    if probe.geometry == "convex":
        half = np.deg2rad(probe.aperture)
        top = probe.radius * np.cos(half)
        width, height = 2 * (probe.radius + probe.depth) * np.sin(half), probe.radius + probe.depth - top
    else:
        half, top, width, height = probe.aperture, 0.0, 2 * probe.aperture, probe.depth
    scale = size / max(width, height)
    columns, rows = round(width * scale), round(height * scale)
    x = (np.arange(columns, dtype=np.float32) + 0.5) / scale - width / 2
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / scale + top
    if probe.geometry == "convex":
        across, depth = np.arctan2(x, y) / half, np.hypot(x, y) - probe.radius
    else:
        across, depth = np.broadcast_to(x / half, (rows, columns)), np.broadcast_to(y, (rows, columns))
    return np.stack([depth / probe.depth * (SAMPLES - 1), (across + 1) / 2 * (BEAMS - 1)])


def _sample(beams, pixels):
    """What the beam grid holds at the pixels; 0 outside it."""
    return map_coordinates(beams, pixels, order=1, cval=0.0)


def _opacity(mask, pixels):
    inside = _sample(mask.astype(np.float32), pixels) > 0.5 if mask.any() else np.zeros(pixels.shape[1:], bool)
    return inside.astype(np.uint8) * 255

"""The embedded data: a made collection of lung-ultrasound frames in the sizes of the original study.

Site A is data set 1 (364 normal, 351 sick) and the 50 unknown images, site B is data set 2 (112 + 112) from elsewhere:
other probes, depths, gain, noise, margins and burned-in marks. A patient has 1-6 similar frames, so that a split by
frame leaks as it does in real life. No frame shows a person; each is marked as synthetic in its file and in the table.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from tqdm.auto import tqdm

from training.anatomy import FINDINGS, Anatomy, draw_anatomy
from training.phantom_sites import Look, Site, draw_site, draw_varied_anatomy
from training.ultrasound import Probe, outline, simulate

COLUMNS = ("file_name", "label", "group", "site", "finding", "synthetic", "license")
MOST_FRAMES = 6  # of one patient
LEAST_CONTRAST = 0.3  # that opacities have at a varied site: what cannot be seen teaches nothing

SITES = {
    "A": Site(
        frames={"normal": 364, "sick": 351, "": 50},
        linear_share=0.15,
        convex=dict(
            depth=(95, 150), aperture=(28, 34), radius=(45, 60), focus=(30, 60), axial=(0.2, 0.3), lateral=(0.8, 1.1)
        ),
        linear=dict(
            depth=(60, 90), aperture=(22, 26), radius=(0, 0), focus=(20, 40), axial=(0.12, 0.2), lateral=(0.35, 0.5)
        ),
        dynamic_range=(52, 66),
        noise=(46, 60),
        tgc_slope=(-0.08, 0.08),
        smoothing=(0, 1),
        brightness=(0.2, 0.36),
        size=(330, 400),
        margin=(0, 0.03),
        marks=("ticks", "LUNG  C5-2"),
    ),
    "B": Site(
        frames={"normal": 112, "sick": 112},
        linear_share=0.4,
        convex=dict(
            depth=(110, 180), aperture=(33, 42), radius=(14, 40), focus=(60, 90), axial=(0.3, 0.5), lateral=(1.2, 1.7)
        ),
        linear=dict(
            depth=(45, 75), aperture=(18, 24), radius=(0, 0), focus=(15, 35), axial=(0.1, 0.2), lateral=(0.3, 0.5)
        ),
        dynamic_range=(40, 54),
        noise=(34, 46),
        tgc_slope=(-0.16, 0.06),
        smoothing=(0, 0.4),
        brightness=(0.12, 0.3),
        size=(260, 420),
        margin=(0.04, 0.16),
        marks=("bar", "MI 0.9  TIS 0.4  42Hz", "THORAX"),
    ),
}


@dataclass(frozen=True)
class Patient:
    """Somebody who does not exist."""

    group: str
    site: str
    label: str  # "" when unknown
    finding: str  # regular, or one of FINDINGS
    frames: int
    seed: tuple[int, ...]


def draw_sites(count: int | None = None, seed: int = 0) -> dict[str, Site]:
    """Sites A and B, or as many as `count` says that were drawn by chance: S001, S002, ..."""
    if count is None:
        return SITES
    return {f"S{n:03d}": draw_site(np.random.default_rng([seed, n])) for n in range(1, count + 1)}


def draw_patients(seed: int = 0, scale: float = 1.0, sites: Mapping[str, Site] = SITES) -> list[Patient]:
    """All patients of all sites in the order of their names; `scale` is the share of the sites' numbers of frames."""
    patients = []
    for place, (name, site) in enumerate(sites.items()):
        drawn = []
        for kind, (label, total) in enumerate(site.frames.items()):
            rng = np.random.default_rng([seed, place, kind])
            left = round(total * scale)
            while left > 0:
                frames = min(left, int(rng.integers(1, MOST_FRAMES + 1)))
                sick = label == "sick" or (label == "" and rng.random() < 0.5)
                finding = str(rng.choice(FINDINGS, p=(0.45, 0.3, 0.25))) if sick else "regular"
                drawn.append((label, finding, frames, (seed, place, kind, len(drawn))))
                left -= frames
        order = np.random.default_rng([seed, place, 99]).permutation(len(drawn))  # so that names tell no label
        patients += [Patient(f"{name}{n + 1:04d}", name, *drawn[i]) for n, i in enumerate(order)]
    return patients


def draw_frames(patient: Patient, site: Site) -> list[tuple[np.ndarray, np.ndarray]]:
    """Simulate a patient's frames: (frame, mask) pairs of uint8 arrays of one shape, grey 0-255 and 0 or 255."""
    rng = np.random.default_rng(patient.seed)
    shapes = site.linear if rng.random() < site.linear_share else site.convex
    machine = {name: getattr(site, name) for name in ("dynamic_range", "noise", "tgc_slope", "smoothing", "brightness")}
    settings = {name: float(rng.uniform(*span)) for name, span in (shapes | machine).items()}
    probe = Probe("linear" if shapes is site.linear else "convex", **settings)
    size, margin = round(rng.uniform(*site.size)), rng.uniform(*site.margin)
    borders = [round(size * margin * share) for share in rng.uniform(0.3, 1, 4)]

    look = site.draw_look(rng) if site.varied else Look()
    draw = draw_varied_anatomy if site.varied else draw_anatomy

    anatomy = draw(rng, patient.finding)
    wanted = LEAST_CONTRAST if site.varied and patient.finding != "regular" else 0.0
    while _share(look.cut(outline(anatomy, probe, rng, size=100))) < _seen(patient) or (
        wanted and _contrast(anatomy, probe, look) < wanted
    ):
        anatomy = draw(rng, patient.finding)
        wanted *= 0.95  # so that there is an end at sites that show little
    pairs = []
    while len(pairs) < patient.frames:
        pair = simulate(anatomy, probe, rng, shift=rng.normal(0, 3), breath=rng.normal(0, 0.7), size=size)
        frame, mask = (look.cut(picture) for picture in pair)
        if _share(mask) >= _seen(patient) / 2:
            frame, mask = (np.pad(picture, (borders[:2], borders[2:])) for picture in (look.finish(frame), mask))
            pairs.append((_burn_in(frame, site.marks, probe), mask))
    return pairs


def _share(mask: np.ndarray) -> float:
    return float((mask > 0).mean())


def _contrast(anatomy: Anatomy, probe: Probe, look: Look) -> float:
    """How much opacities change the picture where they are: mean difference in grey, as a share of the mean grey."""
    sick, mask = simulate(anatomy, probe, np.random.default_rng(anatomy.seed), size=100)
    spared, _ = simulate(replace(anatomy, lesions=[]), probe, np.random.default_rng(anatomy.seed), size=100)
    sick, spared, mask = (look.cut(picture) for picture in (sick, spared, mask))
    sick, spared = look.finish(sick).astype(float), look.finish(spared).astype(float)
    return float(np.abs(sick - spared)[mask > 0].mean() / spared[spared > 0].mean())


def _seen(patient: Patient) -> float:
    """The least share of the picture that a sick patient's opacity takes."""
    return 0.0 if patient.finding == "regular" else 0.015


def _burn_in(frame: np.ndarray, marks: tuple[str, ...], probe: Probe) -> np.ndarray:
    """Write the machine's marks into the picture: a depth scale, a grey bar, texts."""
    image = Image.fromarray(frame)
    draw, (width, height) = ImageDraw.Draw(image), image.size
    corners = iter([(4, 2), (4, height - 16)])
    for mark in marks:
        if mark == "ticks":
            step = height * 10 / probe.depth
            for k in range(1, int(probe.depth // 10)):
                length = 6 if k % 5 == 0 else 3
                draw.line([(width - 2 - length, k * step), (width - 2, k * step)], fill=170)
        elif mark == "bar":
            shades = np.linspace(255, 0, height // 3).astype(np.uint8)[:, None].repeat(6, axis=1)
            image.paste(Image.fromarray(shades), (width - 9, 6))
        else:
            draw.text(next(corners), mark, fill=200, font=ImageFont.load_default(11))
    return np.asarray(image)


def write_phantom(folder: Path, seed: int = 0, scale: float = 1.0, sites: int | None = None) -> None:
    """Write the collection as an image folder: images/, masks/ (of the sick frames), metadata.csv.

    The same seed, scale and number of sites give the same bytes. At scale 1 these are 989 frames of sites A and B, or
    2 of each of the sites that are drawn.
    """
    note = PngImagePlugin.PngInfo()
    note.add_text("Synthetic", "yes")
    note.add_text("Description", "simulated lung-ultrasound frame; no person was examined")
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()

    def write(patient: Patient) -> list[list[str]]:
        rows = []
        for number, (frame, mask) in enumerate(draw_frames(patient, places[patient.site]), 1):
            name = f"{patient.group}-{number}.png"
            Image.fromarray(frame).save(folder / "images" / name, pnginfo=note)
            if patient.label == "sick":
                Image.fromarray(mask).save(folder / "masks" / name, pnginfo=note)
            finding = patient.finding if patient.label else ""
            rows.append([f"images/{name}", patient.label, patient.group, patient.site, finding, "yes", "Apache-2.0"])
        return rows

    places = draw_sites(sites, seed)
    patients = draw_patients(seed, scale, places)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=sum(p.frames for p in patients), desc="phantom", unit="frame") as progress,
        open(folder / "metadata.csv", "w", newline="") as table,
    ):
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rows in pool.map(write, patients):
            writer.writerows(rows)
            progress.update(len(rows))

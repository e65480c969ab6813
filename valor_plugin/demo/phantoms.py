"""Synthetic frontal chest films, called phantoms, with findings drawn at known places.

Enough of a chest film for small models to learn from within minutes, and no more: shapes in grey,
not anatomy. Seeded, so that the same call gives the same pixels.

As on real films the patient faces the reader: **the left of the image is the patient's right**.
`effusion_left` is an effusion on the patient's left, drawn in the right half of the image.

Inside, lengths are fractions of the image's side, x to the right and y downwards; `u` is the
distance from the midline towards the side at hand. Every number in this file is our choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from valor_plugin.data.studies import Study

Finding = Literal[
    "cardiomegaly",
    "effusion_left",
    "effusion_right",
    "pneumothorax_left",
    "pneumothorax_right",
    "consolidation_left",
    "consolidation_right",
    "atelectasis",
    "edema",
    "device",
]
SIDES = ("right", "left")  # as they stand in the image
Box = tuple[int, int, int, int]
Plane = NDArray[np.floating]

OBSERVATION_OF: Mapping[Finding, str] = {
    "cardiomegaly": "Cardiomegaly",
    "effusion_left": "Pleural Effusion",
    "effusion_right": "Pleural Effusion",
    "pneumothorax_left": "Pneumothorax",
    "pneumothorax_right": "Pneumothorax",
    "consolidation_left": "Consolidation",
    "consolidation_right": "Consolidation",
    "atelectasis": "Atelectasis",
    "edema": "Edema",
    "device": "Support Devices",
}
"""The CheXpert observation that each finding is an instance of."""

DRAWABLE: tuple[Finding, ...] = tuple(OBSERVATION_OF)


@dataclass(frozen=True)
class Phantom:
    """A drawn phantom.

    Attributes:
        image: the drawn film, square, of mode "L" (grey).
        boxes: drawn finding -> its box (x0, y0, x1, y1) in pixels of the image; x1 and y1 are
            exclusive.
    """

    image: Image.Image
    boxes: Mapping[Finding, Box]


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """None to three findings (20, 35, 30, 15 %), all equally likely, in the order of DRAWABLE."""
    count = rng.choice(4, p=(0.20, 0.35, 0.30, 0.15))
    return tuple(DRAWABLE[i] for i in sorted(rng.choice(len(DRAWABLE), count, replace=False)))


def draw(findings: Collection[Finding], seed: int, size: int = 96) -> Phantom:
    """Draws a phantom; the same findings (in any order), seed and size give the same pixels.

    A seed stands for a patient: with other findings it gives the same chest, exposure and noise.

    Args:
        findings: findings to draw, of `DRAWABLE`, each at most once.
        seed: number of the patient, not negative.
        size: side of the image in pixels, 32 at least.

    Raises:
        ValueError: a finding is not in `DRAWABLE`.
    """
    if unknown := set(findings) - set(DRAWABLE):
        raise ValueError(f"unknown findings {sorted(unknown)}; known: {', '.join(DRAWABLE)}")
    chest = _Chest(np.random.default_rng([seed, 0]), findings, size)
    boxes: dict[Finding, Box] = {}
    for finding in DRAWABLE:
        if finding in findings:
            name, _, side = finding.partition("_")
            rng = np.random.default_rng([seed, 1 + DRAWABLE.index(finding)])
            boxes[finding] = _box(_DRAW[name](chest, rng, side))
    return Phantom(chest.develop(), boxes)


Reporter = Callable[[Collection[Finding], np.random.Generator], str]
"""Writes a report about findings, see `valor_plugin.demo.phantom_reports.SentenceBank.report`."""
_LIST = "phantoms.jsonl"


@dataclass(frozen=True)
class PhantomStudy:
    """A phantom in a folder.

    Attributes:
        study: the phantom's image and report as a study.
        findings: findings that the phantom shows, in the order of `DRAWABLE`.
        boxes: drawn finding -> its box (x0, y0, x1, y1) in pixels of the image; x1 and y1 are
            exclusive.
    """

    study: Study
    findings: tuple[Finding, ...]
    boxes: Mapping[Finding, Box]


def write_phantoms(
    folder: Path, n: int, seed: int, report: Reporter, size: int = 96
) -> list[PhantomStudy]:
    """Draws phantoms into a folder: `<id>.png` each, and `phantoms.jsonl` about all of them.

    A line of `phantoms.jsonl` holds id, image, report, findings and boxes, so that it is a studies
    file too. The same arguments give the same files; another seed gives other ids and phantoms.

    Args:
        folder: folder to write into, made if need be; files of the same name are overwritten.
        n: number of phantoms.
        seed: random seed, not negative, which is also in the ids.
        report: function that writes the report of a phantom.
        size: side of the images in pixels.

    Returns:
        The phantoms, in the order of `phantoms.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LIST).open("w", encoding="utf-8") as lines:
        for i in tqdm(range(n), "phantoms", disable=None):
            rng = np.random.default_rng([seed, i])
            findings = sample_findings(rng)
            text = report(findings, rng)
            phantom = draw(findings, int(rng.integers(2**63)), size)
            name = f"phantom-{seed}-{i:05d}"
            phantom.image.save(folder / f"{name}.png", compress_level=1)
            row = {"id": name, "image": f"{name}.png", "report": text}
            lines.write(json.dumps(row | {"findings": findings, "boxes": phantom.boxes}) + "\n")
    return read_phantoms(folder)


def read_phantoms(folder: Path) -> list[PhantomStudy]:
    """The phantoms that `write_phantoms` left in a folder, in their order."""
    with (folder / _LIST).open(encoding="utf-8") as lines:
        return [
            PhantomStudy(
                Study(row["id"], folder / row["image"], row["report"]),
                tuple(row["findings"]),
                {finding: tuple(box) for finding, box in row["boxes"].items()},
            )
            for row in map(json.loads, lines)
        ]


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Plane, Plane]:
    """Pixel centres: x of shape (1, size) and y of shape (size, 1)."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


def _step(distance: Plane, width: float = 0.02) -> Plane:
    """A soft edge: 0 where the distance is below -width/2, 1 above width/2, linear between."""
    return np.clip(distance / width + 0.5, 0.0, 1.0)


def _bell(distance: Plane, width: float) -> Plane:
    """1 at distance 0, 1/e at `width`."""
    return np.exp(-np.square(distance / width))


def _cloud(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Smooth noise of unit variance at its nodes, `cells` of them along each side."""
    nodes = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(nodes.resize((size, size), Image.Resampling.BICUBIC))


def _strokes(size: int, strokes: list[tuple[list[tuple[float, float]], float]]) -> Plane:
    """Anti-aliased polylines in [0, 1]; a stroke is its (x, y) points and its width."""
    scale = 3
    sheet = Image.new("L", (scale * size, scale * size))
    pen = ImageDraw.Draw(sheet)
    for points, width in strokes:
        path = [(x * scale * size, y * scale * size) for x, y in points]
        pen.line(path, 255, max(1, round(width * scale * size)), "curve")
    return np.asarray(sheet.reduce(scale), np.float32) / 255


def _box(region: Plane) -> Box:
    """The smallest box around what is at least half as strong as the region's maximum."""
    seen = region >= 0.5 * region.max()
    xs, ys = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


class _Chest:
    """A chest being drawn: what absorbs (`tissue`), where the lungs hold air (`air`), and noise."""

    def __init__(self, rng: np.random.Generator, findings: Collection[Finding], size: int) -> None:
        self.size = size
        self.x, self.y = _grid(size)
        self.mid = rng.normal(0.5, 0.012)
        self.wide = rng.uniform(0.35, 0.41)  # midline to chest wall
        self.top = rng.uniform(0.08, 0.13)  # apices
        base, dome = rng.uniform(0.80, 0.90), rng.uniform(0.08, 0.13)
        tilt = rng.normal(0.0, 0.012)
        self.dome = {"right": base - dome - 0.015 - tilt, "left": base - dome + 0.015 + tilt}
        self.angle = {"right": base - tilt, "left": base + tilt}  # costophrenic angles
        ratio, enlarged = rng.uniform(0.38, 0.505), rng.uniform(0.505, 0.63)
        self.blocked = {side for side in SIDES if f"effusion_{side}" in findings}
        # An atelectasis goes where no effusion hides it, and raises the diaphragm there.
        self.collapsed = SIDES[int(rng.integers(2))]
        if len(self.blocked) == 1:
            self.collapsed = "left" if "right" in self.blocked else "right"
        loss = rng.uniform(0.03, 0.07)
        if "atelectasis" in findings:
            self.dome[self.collapsed] -= loss

        self.lungs = {side: self._lung(side) for side in SIDES}
        self.heart = self._heart(enlarged if "cardiomegaly" in findings else ratio, rng)
        shown = 1 - 0.93 * self.heart
        self.lungs = {side: lung * shown for side, lung in self.lungs.items()}
        self.air = self.lungs["right"] + self.lungs["left"]
        self.vessels = self._vessels(rng) * self.air
        self.tissue = self._tissue(rng)
        self.depth = rng.uniform(0.36, 0.46)
        self.gain, self.gamma = rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.25)
        grain = rng.standard_normal((size, size), dtype=np.float32) * rng.uniform(0.015, 0.04)
        haze = _cloud(rng, size, 4) * 0.02 + _cloud(rng, size, 10) * 0.025
        self.noise = grain + haze

    def u(self, side: str) -> Plane:
        """Distance from the midline towards the patient's `side`, shape (1, size)."""
        return self.x - self.mid if side == "left" else self.mid - self.x

    def at(self, side: str, u: float) -> float:
        """The x of a distance from the midline."""
        return self.mid + u if side == "left" else self.mid - u

    def seen(self, side: str, y: float, share: float) -> float:
        """The x at height y that has `share` of the lung beside the heart on its image left."""
        xs = np.flatnonzero(self.lungs[side][int(y * self.size)] > 0.5)
        return float(xs[int(share * len(xs))] + 0.5) / self.size

    def wall(self, inset: float = 0.0) -> Plane:
        """Midline to the inner chest wall at each height, shape (size, 1)."""
        t = np.clip((self.y - self.top - inset) / 0.62, 0.0, 1.0)
        return self.wide * (1 - (1 - t) ** 2.6) ** 0.62 - inset

    def floor(self, side: str) -> Plane:
        """Height of the diaphragm, shape (1, size)."""
        bend = np.square((self.u(side) / self.wide - 0.40) / 0.62)
        return self.dome[side] + (self.angle[side] - self.dome[side]) * bend

    def _lung(self, side: str) -> Plane:
        u, y = self.u(side), self.y
        inner = 0.05 + 0.02 * _step(y - 0.3, 0.3)
        if side == "left":
            inner = inner + 0.03 * _bell(y - 0.31, 0.05)  # aortic knob
        return _step(self.wall() - u) * _step(u - inner, 0.03) * _step(self.floor(side) - y)

    def _heart(self, ratio: float, rng: np.random.Generator) -> Plane:
        """The heart's shadow; `ratio` is its width over that of the chest."""
        half = ratio * self.wide
        x = self.x - self.mid - half * rng.uniform(0.30, 0.42)
        bottom = max(self.dome.values()) + 0.05
        tall = 0.16 + 0.25 * half
        y = self.y - (bottom - tall) - 0.3 * x
        return _step(1 - np.sqrt(np.square(x / half) + np.square(y / tall)), 0.12)

    def _vessels(self, rng: np.random.Generator) -> Plane:
        """Branches that leave the hila and grow thin."""
        strokes = []
        for side in SIDES:
            for angle in np.linspace(-1.25, 1.35, 9) + rng.normal(0, 0.1, 9):
                u, y, step = 0.08, 0.46 + 0.03 * angle, rng.uniform(0.04, 0.07)
                width = 0.016
                for _ in range(5):
                    start = (self.at(side, u), y)
                    u, y = u + step * math.cos(angle), y + step * math.sin(angle)
                    strokes.append(([start, (self.at(side, u), y)], width))
                    angle, width = angle + rng.normal(0, 0.25), 0.75 * width
        return _strokes(self.size, strokes)

    def _tissue(self, rng: np.random.Generator) -> Plane:
        """Everything but air: soft tissue, mediastinum, spine, ribs and clavicles."""
        x, y = self.x - self.mid, self.y
        out = np.abs(x)
        body = _step(0.14 + 0.45 * _step(y - 0.12, 0.16) - 0.12 * _step(y - 0.4, 0.5) - out, 0.03)
        tissue = 0.60 - 0.5 * np.square(out) + 0.10 * self.heart
        tissue = tissue + 0.10 * _bell(x, 0.055) + 0.05 * _bell(x, 0.03) * np.cos(y * 90)
        tissue = tissue - 0.10 * _bell(x, 0.016) * _step(0.36 - y, 0.1)  # trachea
        for side in SIDES:
            tissue = tissue + 0.10 * _step(y - self.floor(side)) * _step(self.u(side), 0.1)
        gap, shift = rng.uniform(0.080, 0.095), rng.uniform(0, 1)
        cage = _step(self.wall(-0.02) - out, 0.03) * _step(out - 0.04, 0.05)
        behind = np.cos(2 * np.pi * ((y + 0.10 * out - 1.1 * out**2.2) / gap + shift))
        before = np.cos(2 * np.pi * ((y + 0.45 * out) / (1.25 * gap) + shift))
        ribs = 0.075 * np.clip(behind, 0, 1) ** 0.8 + 0.035 * np.clip(before - 0.2, 0, 1)
        tissue = tissue + cage * ribs * _step(0.92 - y, 0.2)
        breast = rng.uniform(0, 0.07) * _step(y - 0.55, 0.3) * _bell(out - 0.22, 0.15)
        lift = rng.uniform(-0.02, 0.03)
        clavicle = ((0.03, 0.19), (0.2, 0.165), (0.42, 0.12 - lift))
        bones = [([(self.at(side, u), y) for u, y in clavicle], 0.028) for side in SIDES]
        return body * (tissue + breast + 0.09 * _strokes(self.size, bones))

    def develop(self) -> Image.Image:
        """The finished image."""
        air = self.air * (1 - 0.30 * self.vessels)
        light = np.clip(self.tissue - self.depth * air, 0, 1) ** self.gamma * self.gain
        grey = np.clip(0.06 + light + self.noise, 0, 1)
        return Image.fromarray((255 * grey).astype(np.uint8))


def _cardiomegaly(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    return chest.heart  # drawn with the chest


def _effusion(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    """Fluid at the base whose surface climbs the chest wall."""
    depth, climb = rng.uniform(-0.01, 0.18), rng.uniform(0.04, 0.12)
    level = chest.angle[side] - 0.05 - depth - climb * (chest.u(side) / chest.wide) ** 3
    fluid = _step(chest.y - level, 0.04) * chest.lungs[side]
    chest.air = chest.air * (1 - rng.uniform(0.75, 0.95) * fluid)
    return fluid


def _pneumothorax(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    """A lung fallen from the wall: a thin white edge, and beyond it air without vessels."""
    gap = rng.uniform(0.045, 0.11)
    inside = chest.wall(gap) - chest.u(side) * (1 - 0.1 * chest.y)
    beyond = _step(-inside, 0.012) * _step(chest.u(side) - 0.05) * chest.lungs[side]
    edge = _bell(inside, 0.009) * chest.lungs[side]
    chest.vessels = chest.vessels * (1 - beyond)
    chest.air = chest.air * (1 + rng.uniform(0.18, 0.32) * beyond)
    chest.air = chest.air * (1 - rng.uniform(0.2, 0.5) * edge)
    return beyond


def _consolidation(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    """A patch with a ragged edge in the lower half, above an effusion if there is one."""
    lowest = 0.50 if side in chest.blocked else 0.66
    y = rng.uniform(0.42, lowest)
    x = chest.seen(side, y, rng.uniform(0.3, 0.7))
    wide, tall = rng.uniform(0.06, 0.12), rng.uniform(0.06, 0.11)
    radius = np.sqrt(np.square((chest.x - x) / wide) + np.square((chest.y - y) / tall))
    patch = _step(1 - radius + 0.22 * _cloud(rng, chest.size, 12), 0.7) * chest.lungs[side]
    chest.air = chest.air * (1 - rng.uniform(0.35, 0.75) * patch)
    return patch


def _atelectasis(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    """A plate above a raised hemidiaphragm."""
    side = chest.collapsed
    low = 0.55 if side in chest.blocked else chest.dome[side] - rng.uniform(0.04, 0.10)
    slope, x = rng.uniform(-0.3, 0.3), chest.x - chest.seen(side, low, rng.uniform(0.35, 0.65))
    along = _step(rng.uniform(0.09, 0.14) - np.abs(x), 0.05)
    plate = _bell(chest.y - low - slope * x, rng.uniform(0.02, 0.032)) * along * chest.lungs[side]
    chest.air = chest.air * (1 - rng.uniform(0.65, 0.95) * plate)
    return plate


def _edema(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    """Haze around both hila that hides the vessels."""
    y, reach = rng.uniform(0.46, 0.54), rng.uniform(0.16, 0.22)
    spread = np.abs(chest.x - chest.mid) - 0.12
    wings = _bell(spread, reach * 0.7) * _bell(chest.y - y, reach)
    mottle = np.clip(1 + 0.3 * _cloud(rng, chest.size, 16), 0, 1.5)
    wings = wings * (chest.lungs["right"] + chest.lungs["left"])
    chest.air = chest.air * (1 - np.clip(rng.uniform(0.22, 0.5) * wings * mottle, 0, 0.9))
    chest.vessels = chest.vessels * (1 - 0.5 * wings)
    return wings


def _device(chest: _Chest, rng: np.random.Generator, side: str) -> Plane:
    """A pacemaker below a clavicle, its lead through the superior vena cava into the heart."""
    side = "left" if rng.random() < 0.6 else "right"
    x, y = chest.at(side, rng.uniform(0.22, 0.29)), rng.uniform(0.22, 0.30)
    half = rng.uniform(0.03, 0.05)
    vein = chest.at("right", rng.uniform(0.02, 0.05))
    tip = (chest.at("left", rng.uniform(0.06, 0.12)), rng.uniform(0.66, 0.74))
    lead = [(x, y), (chest.at(side, 0.12), y - 0.05), (vein, rng.uniform(0.42, 0.52)), tip]
    metal = _strokes(chest.size, [([(x - half, y), (x + half, y)], 1.6 * half), (lead, 0.012)])
    chest.tissue = chest.tissue + rng.uniform(0.3, 0.5) * metal
    return metal


_DRAW = {
    "cardiomegaly": _cardiomegaly,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "edema": _edema,
    "device": _device,
}

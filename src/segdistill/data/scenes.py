"""Painted images that behave like three modalities: endoscopy, ultrasound, microscopy. Any number, no real patient.

A scene takes two generators: `patient`, seeded alike for all images of a patient, decides what they share (colours,
tissue, machine), `rng` what is this image's own. It returns an image (S, S, 3) in [0, 1] and its foreground (S, S).
Each has what misleads in the real thing: folds, vessels, glare; layers, cysts, shadows; debris, stain, uneven light.
Lengths are in sides of the image, so that it looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Map = NDArray[np.float64]
Scene = Callable[[Generator, Generator, int], tuple[Map, NDArray[np.bool_]]]


def endoscopy(patient: Generator, rng: Generator, size: int) -> tuple[Map, NDArray[np.bool_]]:
    """Mucosa with folds, lit from the camera; polyps are domes of nearly its colour."""
    y, x = _grid(size)
    mucosa = np.array([0.80, 0.46, 0.38]) + patient.uniform(-0.09, 0.09, 3)
    polyp_tint = patient.uniform(-0.06, 0.06) + np.array([0.08, -0.05, -0.04]) * patient.uniform(-0.3, 1)
    vessels, wet, frequency = patient.uniform(0.05, 0.25), patient.uniform(0.3, 1.0), patient.uniform(1.5, 4.0)

    turn = rng.uniform(0, 2 * np.pi)
    phase = frequency * (x * np.cos(turn) + y * np.sin(turn)) + 0.35 * _noise(rng, size, 0.12)
    height = 0.035 * np.abs(np.sin(np.pi * phase)) + 0.006 * _noise(rng, size, 0.05) + 0.0006 * _noise(rng, size, 0.012)
    level = np.max([_blob(rng, size, (0.1, 0.2), 0.15) for _ in range(rng.choice([1, 1, 1, 2]))], axis=0)
    dome = np.sqrt(np.clip(level, 0, None) * (2 - np.clip(level, 0, 1)))
    height = height * (1 - 0.6 * dome) + rng.uniform(0.09, 0.14) * dome

    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(height, 0.006 * size), 1 / size)
    to_light = np.stack([rng.uniform(0.3, 0.7) - x, rng.uniform(0.3, 0.7) - y, np.full_like(x, rng.uniform(0.5, 0.8))])
    to_light /= np.linalg.norm(to_light, axis=0)
    normal = np.stack([-slope_x, -slope_y, np.ones_like(x)]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = np.clip((normal * to_light).sum(0), 0, 1)

    redness = 0.04 * _noise(rng, size, 0.1) - vessels * _lines(rng, size, 0.06) * (1 - 0.7 * dome)
    colour = mucosa + (level > 0)[..., None] * polyp_tint + redness[..., None] * np.array([0.4, 1.0, 0.9])
    lumen = np.clip(_blob(rng, size, (0.08, 0.2), 0.2) * 2, 0, 1) * (level < -0.2) * rng.choice([0, 1])
    light = (0.25 + 0.85 * facing**1.5) * (1 - 0.7 * ndimage.gaussian_filter(lumen, 0.03 * size))
    glare = np.clip((facing + 0.02 * _noise(rng, size, 0.012) - 0.988) * 40 * wet, 0, 1)
    radius = np.hypot(x - 0.5, y - 0.5)
    vignette = np.clip((rng.uniform(0.6, 0.72) - radius) * 40, 0, 1) * (1.05 - 0.9 * radius**2)
    image = (colour * light[..., None] * (1 - glare[..., None]) + glare[..., None]) * vignette[..., None]
    return _finish(rng, image, 0.015), (level > 0) & (vignette > 0.2)  # what the scope does not show is no polyp


def ultrasound(patient: Generator, rng: Generator, size: int) -> tuple[Map, NDArray[np.bool_]]:
    """Layers under speckle, in decibels; a lesion is ragged, darker or brighter than around it; a black cyst is not."""
    y, x = _grid(size)
    depths = np.sort(patient.uniform(0.08, 0.8, 3))
    echoes = patient.uniform(-17, -9, 4)
    contrast = patient.choice([-15.0, -12.0, 12.0])
    grain, attenuation, gain = patient.uniform(0.008, 0.014), patient.uniform(4, 16), patient.uniform(-3, 4)

    bent = y + 0.02 * _noise(rng, size, 0.12) + 0.15 * rng.uniform(-1, 1) * (x - 0.5)
    echo = echoes[np.searchsorted(depths, bent)] + 1.5 * _noise(rng, size, 0.06)
    for depth in depths:
        echo += 9 * np.exp(-(((bent - depth) / 0.01) ** 2)) * np.clip(0.7 + 0.4 * _noise(rng, size, 0.08), 0, 1)
    fibres = np.sin(rng.uniform(80, 130) * bent + 1.5 * _noise(rng, size, 0.08))
    echo += 4 * fibres * np.clip(_noise(rng, size, 0.15), 0, 1)

    lesion = _largest(_blob(rng, size, (0.11, 0.21), 0.2) + 0.08 * _noise(rng, size, 0.03) > 0)
    echo += (
        contrast * ndimage.gaussian_filter(lesion.astype(float), 0.008 * size) * (1 + 0.25 * _noise(rng, size, 0.04))
    )
    for _ in range(rng.integers(0, 3)):
        cyst = (_blob(rng, size, (0.03, 0.07), 0.08) > 0) & ~ndimage.binary_dilation(lesion, iterations=3)
        echo -= 25 * ndimage.gaussian_filter(cyst.astype(float), 0.005 * size)
    for _ in range(rng.integers(0, 3)):  # a shadow falls below something that reflects everything
        centre, width, start = rng.uniform(0, 1), rng.uniform(0.02, 0.06), rng.uniform(0.05, 0.6)
        lateral = np.exp(-(((x - centre - 0.15 * (centre - 0.5) * (y - start)) / width) ** 2))
        echo -= rng.uniform(8, 16) * lateral / (1 + np.exp((start - y) / 0.01))
        echo += 14 * np.exp(-(((x - centre) / width) ** 2) - ((y - start) / 0.012) ** 2)
    waves = ndimage.gaussian_filter(rng.normal(size=(2, size, size)), (0, 0.6 * grain * size, 1.2 * grain * size))
    speckle = 20 * np.log10(np.hypot(*waves) / np.sqrt(2 * (waves**2).mean()) + 0.05)  # Rayleigh
    grey = (echo + 0.8 * speckle - attenuation * y + gain + 42) / 50
    return _finish(rng, np.repeat(grey[..., None], 3, axis=2), 0.01), lesion


def microscopy(patient: Generator, rng: Generator, size: int) -> tuple[Map, NDArray[np.bool_]]:
    """Nuclei, pale to dark, touching; stain clouds, fibres and debris are none. In some patients they glow on dark."""
    fluorescent = patient.random() < 0.35
    stain = np.array([0.55, 0.75, 0.30]) + patient.uniform(-0.12, 0.12, 3)  # absorbance of the nuclei
    counter = np.array([0.10, 0.45, 0.20]) + patient.uniform(-0.08, 0.12, 3)  # of the tissue around
    strength, radius, crowd = patient.uniform(0.7, 1.4), patient.uniform(0.04, 0.065), patient.integers(10, 26)

    nuclei, dye = np.zeros((size, size), dtype=bool), np.zeros((size, size))
    grain = _noise(rng, size, 0.01)
    for _ in range(crowd):
        level = _blob(rng, size, (0.8 * radius, 1.25 * radius), 0.1, border=0.0)
        depth = rng.uniform(0.6, 1.0)
        nuclei |= level > 0
        dye = np.maximum(dye, depth * np.clip(level * 9 + 0.4, 0, 1) * (0.85 + 0.15 * grain))
    clouds = np.clip(_noise(rng, size, 0.07), 0, 2)
    tissue = np.clip(0.7 + 0.3 * _noise(rng, size, 0.1) + 0.12 * _noise(rng, size, 0.012), 0.1, None)
    debris = np.zeros((size, size))
    for _ in range(rng.integers(2, 9)):
        debris = np.maximum(debris, np.clip(_blob(rng, size, (0.008, 0.02), 0.4, border=0.0) * 6, 0, 1))
    fibres = 0.5 * _lines(rng, size, 0.12)

    dye, debris = (ndimage.gaussian_filter(part, 0.006 * size) for part in (dye, debris))
    lamp = 1 + 0.08 * _noise(rng, size, 0.25)
    if fluorescent:
        glow = 0.06 + 0.75 * strength * dye + 0.10 * clouds + 0.05 * tissue + 0.8 * debris + 0.15 * fibres
        image = (glow * lamp)[..., None] * np.array([0.35, 0.45, 1.0] if patient.random() < 0.5 else [1.0, 1.0, 1.0])
    else:
        absorbed = (strength * dye + 0.28 * clouds)[..., None] * stain + (tissue + fibres)[..., None] * counter
        image = 0.95 * np.exp(-absorbed - 1.3 * debris[..., None]) * lamp[..., None]
    return _finish(rng, image, 0.02), nuclei


SCENES: dict[str, Scene] = {"endoscopy": endoscopy, "ultrasound": ultrasound, "microscopy": microscopy}


def _grid(size: int) -> tuple[Map, Map]:
    centres = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return y, x


def _noise(rng: Generator, size: int, scale: float) -> Map:
    """Gaussian noise smoothed over `scale`, mean 0, variance 1; periodic, being smoothed in its transform for speed."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size * scale
    wave = np.fft.rfft2(rng.normal(size=(size, size))) * np.exp(-2 * (np.pi * frequency) ** 2)
    wave[0, 0] = 0
    smooth = np.fft.irfft2(wave, s=(size, size))
    return np.asarray(smooth / smooth.std())


def _lines(rng: Generator, size: int, scale: float) -> Map:
    """Branching thin lines, 1 on a line: the zero crossings of noise, in a part of the image."""
    thin = np.exp(-((_noise(rng, size, scale) / 0.12) ** 2))
    return thin * np.clip(_noise(rng, size, 0.15), 0, 1)


def _blob(rng: Generator, size: int, radii: tuple[float, float], wobble: float, border: float = 0.18) -> Map:
    """A random star-shaped object: 1 at its centre, 0 at its edge, below 0 outside, -1 far away."""
    centre = rng.uniform(border, 1 - border, 2)
    turn, stretch, radius = rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, 1.5)), rng.uniform(*radii)
    amplitudes, phases = wobble * rng.normal(size=4) / np.arange(2, 6), rng.uniform(0, 2 * np.pi, 4)
    reach = 2.5 * radius
    near = tuple(slice(max(0, int((c - reach) * size)), int((c + reach) * size) + 1) for c in centre)
    y, x = (axis[near] - c for axis, c in zip(_grid(size), centre, strict=True))
    along = (x * np.cos(turn) + y * np.sin(turn)) / stretch
    across = (y * np.cos(turn) - x * np.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    edge = 1 + sum(a * np.cos(k * angle + p) for k, (a, p) in enumerate(zip(amplitudes, phases, strict=True), 2))
    level = np.full((size, size), -1.0)
    level[near] = np.maximum(1 - np.hypot(along, across) / (radius * np.clip(edge, 0.4, 1.6)), -1)
    return level


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask that is not empty."""
    parts, count = ndimage.label(mask)
    areas = ndimage.sum_labels(mask, parts, np.arange(1, count + 1))
    return np.asarray(parts == 1 + int(np.argmax(areas)))


def _finish(rng: Generator, image: Map, noise: float) -> Map:
    """Sensor noise, cut off at 0 and 1."""
    return np.asarray(np.clip(image + noise * rng.normal(size=image.shape), 0, 1))

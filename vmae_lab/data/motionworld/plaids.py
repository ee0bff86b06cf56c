"""Shepard plaids: moving patterns that fill the frame and look statistically the same in every frame, whatever the action.

A plaid is a sum of gratings with random orientations and phases. Rotation turns all orientations, translation shifts the
pattern, and zooming moves the wave numbers along a circle (in the logarithm), as the pitches of a Shepard scale move: the
amplitude of a grating is zero where the circle closes, so zooming never ends and never shows a jump. A single frame therefore
holds no information about the action. Motion is dense: every token sees some of it.
"""

from functools import cache

import numpy as np
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_sample_images

from vmae_lab.data.motionworld.motion import Path

Frames = np.ndarray  # float (F, S, S, 3) in [0, 1]
GRATINGS = 8
COARSEST, OCTAVES = 1.0, 2.0  # cycles per frame side of the coarsest grating, and octaves up to the finest
THRESHOLD, SOFTNESS = 0.3, 1.2  # of the soft threshold that makes bright patches of the sum; it has a deviation of about 1.2
PHOTOGRAPH_PIXELS = 400  # of a photograph across the frame at the smallest size
TURNING, ZOOMING = 1.25, 1.4  # times the speed of the path: dense patterns turn and zoom faster than single things do
OFF_CENTRE = 0.15  # of rotation and zoom from the middle of the frame, at most, in frame sides


def plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Bright patches on a dark ground, one colour each."""
    return _two_colours(_height(path, side, rng, GRATINGS), *_bright_and_dark(rng))


def dark_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Dark patches on a bright ground."""
    bright, dark = _bright_and_dark(rng)
    return _two_colours(_height(path, side, rng, GRATINGS), dark, bright)


def coarse_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """The sum of three gratings in place of eight: large, regular patches."""
    return _two_colours(_height(path, side, rng, 3), *_bright_and_dark(rng))


def striped_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Bright patches behind two bars that do not move and hide a quarter of the frame."""
    frames = plaids(path, side, rng)
    ticks = (np.arange(side) + 0.5) / side
    hidden = np.abs((ticks + rng.random()) % 0.5 - 0.25) < 0.0625
    axis = rng.integers(2)
    frames[(slice(None),) * (1 + axis) + (hidden,)] = rng.uniform(0.25, 0.45, 3)
    return frames


def photographs(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A camera that moves over scikit-learn's two sample photographs, mirrored at their edges.

    Two views half a circle of sizes apart are blended, each with weight zero where its size jumps, so zooming never ends.
    """
    x, y, angle, size = _pattern_motion(path, side)
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = cosine * x[:, None] + sine * y[:, :, None], cosine * y[:, :, None] - sine * x[:, None]
    frames = np.zeros((*x.shape, 3))
    for view, image in enumerate(_photographs()):
        octave = ((size + view / 2) % 1)[:, None, None]
        place = np.stack([y, x]) * (PHOTOGRAPH_PIXELS / 2 ** (OCTAVES * octave))
        place += (rng.random(2) * image.shape[:2])[:, None, None, None]
        weight = np.sin(np.pi * octave) ** 2
        for colour in range(3):
            frames[..., colour] += weight * map_coordinates(image[..., colour], place, order=1, mode="mirror")
    return frames


def _height(path: Path, side: int, rng: np.random.Generator, gratings: int) -> np.ndarray:
    """The sum of gratings `(F, S, S)`; its mean is 0, its variance three eighths of half the number of gratings.

    A grating is `a cos(k n.(x - c) + phase)`. With `k n.x` split into its x and y parts, the sum over gratings is a product of
    matrices, which is 20 times as fast as evaluating each grating in each pixel.
    """
    phase, orientation = rng.random((2, gratings)) * 2 * np.pi
    x, y, turned, size = _pattern_motion(path, side)
    octave = (np.arange(gratings) / gratings - size[:, None]) % 1  # (F, K): what grows has a falling wave number
    wave = 2 * np.pi * COARSEST * 2 ** (OCTAVES * octave)
    amplitude = np.sin(np.pi * octave) ** 2
    angle = orientation + turned[:, None]
    along_x = np.exp(1j * (wave * np.cos(angle))[..., None] * x[:, None])
    along_y = amplitude[..., None] * np.exp(1j * ((wave * np.sin(angle))[..., None] * y[:, None] + phase[:, None]))
    return np.matmul(along_y.transpose(0, 2, 1), along_x).real


def _pattern_motion(path: Path, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Columns and rows of pixels in the pattern's frame of reference, in frame sides `(F, S)`; its angle and size phase `(F,)`.

    A pattern has no end, so it moves on where a path wraps. It starts near the middle, which keeps the centre of rotation
    and zoom in view.
    """
    shift = np.unwrap(path.centre, period=1, axis=0) - path.centre[0]
    centre = 0.5 + 2 * OFF_CENTRE * (path.centre[0] - 0.5) + shift
    ticks = (np.arange(side) + 0.5) / side
    angle = path.angle[0] + TURNING * (np.unwrap(path.angle) - path.angle[0])
    size = path.size[0] + ZOOMING * (np.unwrap(path.size, period=1) - path.size[0])
    return ticks - centre[:, :1], ticks - centre[:, 1:], angle, size


def _two_colours(height: np.ndarray, above: np.ndarray, below: np.ndarray) -> Frames:
    weight = 1 / (1 + np.exp(-4 * (height - THRESHOLD) / SOFTNESS))[..., None]
    return above * weight + below * (1 - weight)


def _bright_and_dark(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0.55, 1.0, 3), rng.uniform(0.0, 0.12, 3)


@cache
def _photographs() -> list[np.ndarray]:
    """scikit-learn's two sample photographs, in [0, 1]: `(427, 640, 3)` each."""
    return [image / 255 for image in load_sample_images().images]

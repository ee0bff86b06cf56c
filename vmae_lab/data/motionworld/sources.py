"""The appearance of motionworld clips: ten sources that differ in everything but the actions.

They stand for the sources that the paper mixes (web, YouTube, Instagram, movies, own recordings). Objects are large, bright and
soft-edged on a plain background, so that a model learns within minutes on a CPU.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits, load_sample_images

from vmae_lab.data.motionworld.motion import Path

Frames = np.ndarray  # float (F, S, S, 3) in [0, 1]
SMALLEST, LARGEST = 0.25, 0.45  # radius of an object, relative to the frame's side
# Settings of the patterns:
GRATINGS = 8
COARSEST, OCTAVES = 1.0, 2.0  # cycles per frame side of the coarsest grating, and octaves up to the finest
THRESHOLD, SOFTNESS = 0.3, 1.2  # of the soft threshold that turns the sum (standard deviation about 1.2) into bright patches
PHOTOGRAPH_PIXELS = 400  # pixels of a photograph across the frame at the smallest size
TURNING, ZOOMING = 1.25, 1.4  # times the speed of the path: patterns turn and zoom faster than objects
OFF_CENTRE = 0.15  # largest distance of the center of rotation and zoom from the middle of the frame, in frame sides

# Objects that move over a plain background, and landscapes under a moving camera --------------------------------------


def sprites(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render a blob of two colors with lobes over a plain background."""
    u = _thing_coordinates(path, side)
    radius, azimuth = np.hypot(u[..., 0], u[..., 1]), np.arctan2(u[..., 1], u[..., 0])
    lobes, depth, lean = rng.integers(2, 5), rng.uniform(0.15, 0.3), rng.uniform(0.1, 0.2)
    edge = (1 - depth - lean) + depth * np.cos(lobes * azimuth) + lean * np.cos(azimuth)
    first, second, ground = _colors(rng)
    surface = _over(first, _step(u[..., 1] + 0.3 * u[..., 0], 0.3), second)
    return _over(surface, _step(edge - radius, 0.12), ground)


def digits(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render a handwritten digit (scikit-learn's 8 x 8 scans, smoothed) in one color over another."""
    scans = _digit_scans()
    u = _thing_coordinates(path, side)
    ink = _lookup(scans[rng.integers(len(scans))], (u + 1) / 2, wrap=False)
    first, _, ground = _colors(rng)
    return _over(first, _step(ink - 0.35, 0.4), ground)


def sticks(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render a stick figure in a random pose: head, trunk, two arms and two legs as thick strokes."""
    u = _thing_coordinates(path, side)
    hip, neck = np.array([0.0, 0.25]), np.array([0.0, -0.35])
    strokes = [(hip, neck)]
    for root, length, down in ((neck, 0.62, 0.5), (hip, 0.68, 1.2)):
        for way in (-1, 1):
            bend = down + rng.uniform(-0.7, 0.7)
            strokes.append((root, root + length * np.array([way * np.cos(bend), np.sin(bend)])))
    distance = np.min([_distance(u, a, b) for a, b in strokes], axis=0)
    limbs, head, ground = _colors(rng)
    figure = _over(limbs, _step(0.13 - distance, 0.12), ground)
    return _over(head, _step(0.24 - np.hypot(u[..., 0], u[..., 1] + 0.62), 0.12), figure)


def camera(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render a landscape of islands under a camera that pans, rolls and zooms."""
    return _islands(_thing_coordinates(path, side, wrap=False) / 10 + rng.random(2), rng)


def kaleidoscope(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render islands, folded into mirrored sectors around the center of the path."""
    u = _thing_coordinates(path, side)
    sectors = int(rng.integers(3, 6))
    radius, azimuth = np.hypot(u[..., 0], u[..., 1]), np.arctan2(u[..., 1], u[..., 0])
    folded = np.abs((azimuth / (2 * np.pi) * sectors) % 1 - 0.5) * 2 * np.pi / sectors
    return _islands(0.12 * np.stack([radius * np.cos(folded), radius * np.sin(folded)], axis=-1) + rng.random(2), rng)


def _thing_coordinates(path: Path, side: int, wrap: bool = True) -> np.ndarray:
    """Return the pixels in the coordinates of the object, in which it fills the unit circle: `(F, S, S, 2)`."""
    ticks = (np.arange(side) + 0.5) / side
    pixels = np.stack(np.meshgrid(ticks, ticks, indexing="xy"), axis=-1)
    offset = pixels[None] - path.centre[:, None, None]
    if wrap:
        offset = (offset + 0.5) % 1 - 0.5
    cosine, sine = np.cos(path.angle), np.sin(path.angle)
    rotation = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], -2)
    scaled = offset / path.scale(SMALLEST, LARGEST)[:, None, None, None]
    return np.einsum("fij,fhwj->fhwi", rotation, scaled)


def _distance(u: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance of points u to the segment from a to b."""
    along = np.clip(((u - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(u - a - along[..., None] * (b - a), axis=-1)


def _islands(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return colors at points u of a periodic landscape of bright islands in a dark sea: `(..., 2)` -> `(..., 3)` in [0, 1].

    There is no texture over the whole frame, because it would dominate the loss: most of its masked patches cannot be
    predicted.
    """
    side = 64  # points of the landscape along each axis
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]) * side
    spectrum = np.where((frequency > 0) & (frequency < 6), np.maximum(frequency, 1) ** -1.0, 0)
    height = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * spectrum).real
    height = _lookup(height / height.std(), u)
    first, second, sea = _colors(rng)
    return _over(_over(first, _step(height - 1.5, 0.5), second), _step(height - 0.6, 0.8), sea)


def _lookup(image: np.ndarray, u: np.ndarray, wrap: bool = True) -> np.ndarray:
    """Sample an image bilinearly at points u. The image is the unit square; outside, it wraps or is 0."""
    rows_columns = np.moveaxis(u[..., ::-1], -1, 0) * np.array(image.shape).reshape(2, *[1] * (u.ndim - 1)) - 0.5 * (not wrap)
    return map_coordinates(image, rows_columns, order=1, mode="grid-wrap" if wrap else "constant", cval=0.0)


@cache
def _digit_scans() -> np.ndarray:
    """Return scikit-learn's handwritten digits, in [0, 1]: `(1797, 8, 8)`."""
    return load_digits().images / 16


# ---------------------------------------------------------------------------------------------------------------------
# Patterns. They fill the frame, and their statistics are the same in every frame, for every action
#
# A plaid is a sum of gratings with random orientations and phases. Rotation turns all orientations, translation shifts the
# pattern, and zooming moves the wave numbers along a circle (in the logarithm), like the pitches of a Shepard scale: the
# amplitude of a grating is zero at the point where the circle closes, so zooming never ends and never jumps. Motion is dense:
# it is visible in every token.
# ---------------------------------------------------------------------------------------------------------------------


def plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render bright patches on a dark background, one color each."""
    return _patches(_height(path, side, rng, GRATINGS), *_colors(rng, 1))


def dark_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render dark patches on a bright background."""
    bright, dark = _colors(rng, 1)
    return _patches(_height(path, side, rng, GRATINGS), dark, bright)


def coarse_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render the sum of three gratings instead of eight: large, regular patches."""
    return _patches(_height(path, side, rng, 3), *_colors(rng, 1))


def striped_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render bright patches behind two static bars that hide a quarter of the frame."""
    frames = plaids(path, side, rng)
    ticks = (np.arange(side) + 0.5) / side
    hidden = np.abs((ticks + rng.random()) % 0.5 - 0.25) < 0.0625
    axis = rng.integers(2)
    frames[(slice(None),) * (1 + axis) + (hidden,)] = rng.uniform(0.25, 0.45, 3)
    return frames


def photographs(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Render scikit-learn's two sample photographs under a moving camera, mirrored at their edges.

    Two views, half a circle of sizes apart, are blended. A view has weight zero when its size jumps, so zooming never ends.
    """
    x, y, angle, size = _pattern_motion(path, side)
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = cosine * x[:, None] + sine * y[:, :, None], cosine * y[:, :, None] - sine * x[:, None]
    frames = np.zeros((*x.shape, 3))
    for view, image in enumerate(_photographs()):
        octave = ((size + view / 2) % 1)[:, None, None]
        points = np.stack([y, x]) * (PHOTOGRAPH_PIXELS / 2 ** (OCTAVES * octave))
        points += (rng.random(2) * image.shape[:2])[:, None, None, None]
        weight = np.sin(np.pi * octave) ** 2
        for channel in range(3):
            frames[..., channel] += weight * map_coordinates(image[..., channel], points, order=1, mode="mirror")
    return frames


def _height(path: Path, side: int, rng: np.random.Generator, gratings: int) -> np.ndarray:
    """Return the sum of gratings `(F, S, S)`, with mean 0 and variance 3/16 of the number of gratings.

    A grating is `a cos(k n.(x - c) + phase)`. With `k n.x` split into its x and y parts, the sum over gratings is a product of
    matrices, which is 20 times faster than evaluating each grating at each pixel.
    """
    phase, orientation = rng.random((2, gratings)) * 2 * np.pi
    x, y, turned, size = _pattern_motion(path, side)
    octave = (np.arange(gratings) / gratings - size[:, None]) % 1  # (F, K): the wave number falls while the pattern grows
    wave = 2 * np.pi * COARSEST * 2 ** (OCTAVES * octave)
    amplitude = np.sin(np.pi * octave) ** 2
    angle = orientation + turned[:, None]
    along_x = np.exp(1j * (wave * np.cos(angle))[..., None] * x[:, None])
    along_y = amplitude[..., None] * np.exp(1j * ((wave * np.sin(angle))[..., None] * y[:, None] + phase[:, None]))
    return np.matmul(along_y.transpose(0, 2, 1), along_x).real


def _patches(height: np.ndarray, above: np.ndarray, below: np.ndarray) -> Frames:
    return _over(above, _step(height - THRESHOLD, SOFTNESS), below)


def _pattern_motion(path: Path, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return pixel columns and rows in the coordinates of the pattern, in frame sides `(F, S)`; angle and size phase `(F,)`.

    A pattern has no edges, so it continues when the path wraps. It starts near the middle, so that the center of rotation and
    zoom stays visible.
    """
    shift = np.unwrap(path.centre, period=1, axis=0) - path.centre[0]
    centre = 0.5 + 2 * OFF_CENTRE * (path.centre[0] - 0.5) + shift
    ticks = (np.arange(side) + 0.5) / side
    angle = path.angle[0] + TURNING * (np.unwrap(path.angle) - path.angle[0])
    size = path.size[0] + ZOOMING * (np.unwrap(path.size, period=1) - path.size[0])
    return ticks - centre[:, :1], ticks - centre[:, 1:], angle, size


@cache
def _photographs() -> list[np.ndarray]:
    """Return scikit-learn's two sample photographs, in [0, 1]: `(427, 640, 3)` each."""
    return [image / 255 for image in load_sample_images().images]


# Colors and edges ----------------------------------------------------------------------------------------------------


def _colors(rng: np.random.Generator, bright: int = 2) -> tuple[np.ndarray, ...]:
    """Draw bright colors and a dark one for the background, so that objects are always brighter than the background."""
    return (*rng.uniform(0.55, 1.0, (bright, 3)), rng.uniform(0.0, 0.12, 3))


def _step(value: np.ndarray, softness: float) -> np.ndarray:
    """Return a soft step: 0 below zero, 1 above it, with an edge of width `softness` in the units of `value`."""
    return 1 / (1 + np.exp(np.clip(-4 * value / softness, -30, 30)))


def _over(surface: np.ndarray, opacity: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the colors `(..., 3)` of a surface with opacity `(...)` over a background."""
    return surface * opacity[..., None] + ground * (1 - opacity[..., None])


SOURCES: dict[str, Callable[[Path, int, np.random.Generator], Frames]] = {
    "sprites": sprites,
    "digits": digits,
    "sticks": sticks,
    "camera": camera,
    "kaleidoscope": kaleidoscope,
    "plaids": plaids,
    "dark_plaids": dark_plaids,
    "coarse_plaids": coarse_plaids,
    "striped_plaids": striped_plaids,
    "photographs": photographs,
}
# Sources without a single object. Their box is the whole frame.
WHOLE_FRAME = ("camera", "kaleidoscope", "plaids", "dark_plaids", "coarse_plaids", "striped_plaids", "photographs")
THINGS = tuple(name for name in SOURCES if name not in WHOLE_FRAME)


def boxes(source: str, path: Path) -> np.ndarray:
    """Return the box around what moves, per frame: `(F, 4)` as x1, y1, x2, y2 in [0, 1]."""
    if source in WHOLE_FRAME:
        return np.tile([0.0, 0.0, 1.0, 1.0], (len(path.angle), 1))
    return path.boxes(SMALLEST, LARGEST)

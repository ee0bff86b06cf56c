"""What the things of motionworld look like: five sources that share the actions and little else.

They stand for the origins the paper mixes (web, YouTube, Instagram, movies, manual recordings). Things are big, bright,
soft-edged and on flat ground: on small things over noisy texture nothing is learned in minutes of CPU time.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

from vmae_lab.data.motionworld.motion import Path
from vmae_lab.data.motionworld.plaids import coarse_plaids, dark_plaids, photographs, plaids, striped_plaids

Frames = np.ndarray  # float (F, S, S, 3) in [0, 1]
SMALLEST, LARGEST = 0.25, 0.45  # radius of a thing, in parts of the frame's side


def sprites(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A two-coloured blob with lobes over a flat ground."""
    u = _thing_coordinates(path, side)
    radius, azimuth = np.hypot(u[..., 0], u[..., 1]), np.arctan2(u[..., 1], u[..., 0])
    lobes, depth, lean = rng.integers(2, 5), rng.uniform(0.15, 0.3), rng.uniform(0.1, 0.2)
    edge = (1 - depth - lean) + depth * np.cos(lobes * azimuth) + lean * np.cos(azimuth)
    one, two, ground = _colours(rng)
    surface = _blend(one, two, _step(u[..., 1] + 0.3 * u[..., 0], 0.3))
    return _over(surface, _step(edge - radius, 0.12), ground)


def digits(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A handwritten digit (scikit-learn's 8 x 8 scans, smoothed) in one colour over another."""
    scans = _digit_scans()
    u = _thing_coordinates(path, side)
    ink = _lookup(scans[rng.integers(len(scans))], (u + 1) / 2, wrap=False)
    one, _, ground = _colours(rng)
    return _over(np.broadcast_to(one, (*ink.shape, 3)), _step(ink - 0.35, 0.4), ground)


def sticks(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A stick figure in a random pose: head, trunk, two arms and two legs as thick strokes."""
    u = _thing_coordinates(path, side)
    hip, neck = np.array([0.0, 0.25]), np.array([0.0, -0.35])
    strokes = [(hip, neck)]
    for root, length, down in ((neck, 0.62, 0.5), (hip, 0.68, 1.2)):
        for way in (-1, 1):
            bend = down + rng.uniform(-0.7, 0.7)
            strokes.append((root, root + length * np.array([way * np.cos(bend), np.sin(bend)])))
    distance = np.min([_distance(u, a, b) for a, b in strokes], axis=0)
    limbs, head, ground = _colours(rng)
    skull = _step(0.24 - np.hypot(u[..., 0], u[..., 1] + 0.62), 0.12)[..., None]
    figure = _over(np.broadcast_to(limbs, (*distance.shape, 3)), _step(0.13 - distance, 0.12), ground)
    return figure * (1 - skull) + head * skull


def camera(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """No thing of its own: a camera pans, rolls and zooms over a landscape of islands."""
    u = _thing_coordinates(path, side, wrap=False) / 10 + rng.random(2)
    return _islands(u, rng)


def kaleidoscope(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Islands folded into mirrored sectors around the path's centre."""
    u = _thing_coordinates(path, side)
    sectors = int(rng.integers(3, 6))
    radius, azimuth = np.hypot(u[..., 0], u[..., 1]), np.arctan2(u[..., 1], u[..., 0])
    folded = np.abs((azimuth / (2 * np.pi) * sectors) % 1 - 0.5) * 2 * np.pi / sectors
    v = 0.12 * np.stack([radius * np.cos(folded), radius * np.sin(folded)], axis=-1) + rng.random(2)
    return _islands(v, rng)


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
# Sources without a thing to put a box around.
WHOLE_FRAME = ("camera", "kaleidoscope", "plaids", "dark_plaids", "coarse_plaids", "striped_plaids", "photographs")


def boxes(source: str, path: Path) -> np.ndarray:
    """Box of what moves, in every frame: `(F, 4)` as x1, y1, x2, y2 in [0, 1]."""
    if source in WHOLE_FRAME:
        return np.tile([0.0, 0.0, 1.0, 1.0], (len(path.angle), 1))
    return path.boxes(SMALLEST, LARGEST)


def _thing_coordinates(path: Path, side: int, wrap: bool = True) -> np.ndarray:
    """Each pixel's place in the thing's own frame of reference, where the thing fills the unit circle: `(F, S, S, 2)`."""
    ticks = (np.arange(side) + 0.5) / side
    pixels = np.stack(np.meshgrid(ticks, ticks, indexing="xy"), axis=-1)
    offset = pixels[None] - path.centre[:, None, None]
    if wrap:
        offset = (offset + 0.5) % 1 - 0.5
    cosine, sine = np.cos(path.angle), np.sin(path.angle)
    rotation = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], -2)
    scaled = offset / path.scale(SMALLEST, LARGEST)[:, None, None, None]
    return np.einsum("fij,fhwj->fhwi", rotation, scaled)


def _step(value: np.ndarray, softness: float) -> np.ndarray:
    """0 below zero, 1 above it, with an edge as soft as `softness` in the thing's units."""
    return 1 / (1 + np.exp(np.clip(-4 * value / softness, -30, 30)))


def _over(surface: np.ndarray, opacity: np.ndarray, ground: np.ndarray) -> np.ndarray:
    return surface * opacity[..., None] + ground * (1 - opacity[..., None])


def _blend(one: np.ndarray, two: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return one * weight[..., None] + two * (1 - weight[..., None])


def _distance(u: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of points to the segment from a to b."""
    along = np.clip(((u - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(u - a - along[..., None] * (b - a), axis=-1)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two bright colours for a thing and a dark one for the ground: the edge of a thing always has one polarity."""
    things = rng.uniform(0.55, 1.0, (2, 3))
    return things[0], things[1], rng.uniform(0.0, 0.12, 3)


def _islands(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours in [0, 1] at points u of a periodic landscape, bright islands in a dark sea: `(..., 2)` -> `(..., 3)`.

    A texture that fills the frame would fill the loss too: most of its hidden cubes cannot be guessed from the few seen.
    """
    side = 64  # points of the landscape along each axis
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]) * side
    spectrum = np.where((frequency > 0) & (frequency < 6), np.maximum(frequency, 1) ** -1.0, 0)
    height = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * spectrum).real
    height = _lookup(height / height.std(), u)
    one, two, sea = _colours(rng)
    return _over(_blend(one, two, _step(height - 1.5, 0.5)), _step(height - 0.6, 0.8), sea)


def _lookup(image: np.ndarray, u: np.ndarray, wrap: bool = True) -> np.ndarray:
    """Bilinear look-up of an image at points u, whose unit square is the image; outside it wraps or is empty."""
    rows_columns = np.moveaxis(u[..., ::-1], -1, 0) * np.array(image.shape).reshape(2, *[1] * (u.ndim - 1)) - 0.5 * (not wrap)
    return map_coordinates(image, rows_columns, order=1, mode="grid-wrap" if wrap else "constant", cval=0.0)


@cache
def _digit_scans() -> np.ndarray:
    """scikit-learn's handwritten digits, in [0, 1]: `(1797, 8, 8)`."""
    return load_digits().images / 16

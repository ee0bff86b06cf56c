"""What clips of motionworld look like: ten sources that share the actions and little else.

They represent the origins that the paper mixes (web, YouTube, Instagram, movies, manual recordings). Things are big, bright,
soft-edged and on flat ground: a model learns nothing from small things over noisy texture in minutes of CPU time.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits, load_sample_images

from vmae_lab.data.motionworld.motion import Path

Frames = np.ndarray  # float (F, S, S, 3) in [0, 1]
SMALLEST, LARGEST = 0.25, 0.45  # radius of a thing, in parts of the frame's side
# Of the patterns:
GRATINGS = 8
COARSEST, OCTAVES = 1.0, 2.0  # cycles per frame side of the coarsest grating, and octaves up to the finest
THRESHOLD, SOFTNESS = 0.3, 1.2  # of the soft threshold that makes bright patches of the sum, whose deviation is about 1.2
PHOTOGRAPH_PIXELS = 400  # of a photograph across the frame at the smallest size
TURNING, ZOOMING = 1.25, 1.4  # times the speed of the path: patterns turn and zoom faster than things
OFF_CENTRE = 0.15  # largest distance of the centre of rotation and zoom from the middle of the frame, in frame sides

# Things: one object that moves over a flat ground, or a landscape under a moving camera ------------------------------


def sprites(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A two-coloured blob with lobes over a flat ground."""
    u = _thing_coordinates(path, side)
    radius, azimuth = np.hypot(u[..., 0], u[..., 1]), np.arctan2(u[..., 1], u[..., 0])
    lobes, depth, lean = rng.integers(2, 5), rng.uniform(0.15, 0.3), rng.uniform(0.1, 0.2)
    edge = (1 - depth - lean) + depth * np.cos(lobes * azimuth) + lean * np.cos(azimuth)
    one, two, ground = _colours(rng)
    surface = _over(one, _step(u[..., 1] + 0.3 * u[..., 0], 0.3), two)
    return _over(surface, _step(edge - radius, 0.12), ground)


def digits(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A handwritten digit (scikit-learn's 8 x 8 scans, smoothed) in one colour over another."""
    scans = _digit_scans()
    u = _thing_coordinates(path, side)
    ink = _lookup(scans[rng.integers(len(scans))], (u + 1) / 2, wrap=False)
    one, _, ground = _colours(rng)
    return _over(one, _step(ink - 0.35, 0.4), ground)


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
    figure = _over(limbs, _step(0.13 - distance, 0.12), ground)
    return _over(head, _step(0.24 - np.hypot(u[..., 0], u[..., 1] + 0.62), 0.12), figure)


def camera(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """A camera that pans, rolls and zooms over a landscape of islands."""
    return _islands(_thing_coordinates(path, side, wrap=False) / 10 + rng.random(2), rng)


def kaleidoscope(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Islands folded into mirrored sectors around the path's centre."""
    u = _thing_coordinates(path, side)
    sectors = int(rng.integers(3, 6))
    radius, azimuth = np.hypot(u[..., 0], u[..., 1]), np.arctan2(u[..., 1], u[..., 0])
    folded = np.abs((azimuth / (2 * np.pi) * sectors) % 1 - 0.5) * 2 * np.pi / sectors
    return _islands(0.12 * np.stack([radius * np.cos(folded), radius * np.sin(folded)], axis=-1) + rng.random(2), rng)


def _thing_coordinates(path: Path, side: int, wrap: bool = True) -> np.ndarray:
    """Each pixel in the thing's frame of reference, in which the thing fills the unit circle: `(F, S, S, 2)`."""
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
    """Distance of points to the segment from a to b."""
    along = np.clip(((u - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(u - a - along[..., None] * (b - a), axis=-1)


def _islands(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours at points u of a periodic landscape, bright islands in a dark sea: `(..., 2)` -> `(..., 3)` in [0, 1].

    A texture over the whole frame would dominate the loss: most of its masked patches cannot be predicted from visible ones.
    """
    side = 64  # points of the landscape along each axis
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]) * side
    spectrum = np.where((frequency > 0) & (frequency < 6), np.maximum(frequency, 1) ** -1.0, 0)
    height = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * spectrum).real
    height = _lookup(height / height.std(), u)
    one, two, sea = _colours(rng)
    return _over(_over(one, _step(height - 1.5, 0.5), two), _step(height - 0.6, 0.8), sea)


def _lookup(image: np.ndarray, u: np.ndarray, wrap: bool = True) -> np.ndarray:
    """Bilinear look-up of an image at points u, whose unit square is the image; outside it wraps or is empty."""
    rows_columns = np.moveaxis(u[..., ::-1], -1, 0) * np.array(image.shape).reshape(2, *[1] * (u.ndim - 1)) - 0.5 * (not wrap)
    return map_coordinates(image, rows_columns, order=1, mode="grid-wrap" if wrap else "constant", cval=0.0)


@cache
def _digit_scans() -> np.ndarray:
    """scikit-learn's handwritten digits, in [0, 1]: `(1797, 8, 8)`."""
    return load_digits().images / 16


# ---------------------------------------------------------------------------------------------------------------------
# Patterns: they fill the frame and look statistically the same in every frame, whatever the action
#
# A plaid is a sum of gratings with random orientations and phases. Rotation turns all orientations, translation shifts the
# pattern, and zooming moves the wave numbers along a circle (in the logarithm), as the pitches of a Shepard scale move: the
# amplitude of a grating is zero at the point where the circle closes, so zooming never ends and never jumps. Motion is dense:
# every token shows some.
# ---------------------------------------------------------------------------------------------------------------------


def plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Bright patches on a dark ground, one colour each."""
    return _patches(_height(path, side, rng, GRATINGS), *_colours(rng, 1))


def dark_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """Dark patches on a bright ground."""
    bright, dark = _colours(rng, 1)
    return _patches(_height(path, side, rng, GRATINGS), dark, bright)


def coarse_plaids(path: Path, side: int, rng: np.random.Generator) -> Frames:
    """The sum of three gratings instead of eight: large, regular patches."""
    return _patches(_height(path, side, rng, 3), *_colours(rng, 1))


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


def _patches(height: np.ndarray, above: np.ndarray, below: np.ndarray) -> Frames:
    return _over(above, _step(height - THRESHOLD, SOFTNESS), below)


def _pattern_motion(path: Path, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Columns and rows of pixels in the pattern's frame of reference, in frame sides `(F, S)`; its angle and size phase `(F,)`.

    A pattern has no end, so it continues where a path wraps. It starts near the middle, so that the centre of rotation and
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
    """scikit-learn's two sample photographs, in [0, 1]: `(427, 640, 3)` each."""
    return [image / 255 for image in load_sample_images().images]


# Colours and edges ---------------------------------------------------------------------------------------------------


def _colours(rng: np.random.Generator, bright: int = 2) -> tuple[np.ndarray, ...]:
    """Some bright colours and a dark one for the ground: the edge of a thing always has the same polarity."""
    return (*rng.uniform(0.55, 1.0, (bright, 3)), rng.uniform(0.0, 0.12, 3))


def _step(value: np.ndarray, softness: float) -> np.ndarray:
    """0 below zero, 1 above it, with an edge as soft as `softness` in the units of `value`."""
    return 1 / (1 + np.exp(np.clip(-4 * value / softness, -30, 30)))


def _over(surface: np.ndarray, opacity: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Colours `(..., 3)` of a surface with opacity `(...)` over a ground."""
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
# Sources without a thing to put a box around.
WHOLE_FRAME = ("camera", "kaleidoscope", "plaids", "dark_plaids", "coarse_plaids", "striped_plaids", "photographs")
THINGS = tuple(name for name in SOURCES if name not in WHOLE_FRAME)


def boxes(source: str, path: Path) -> np.ndarray:
    """Box of what moves, in every frame: `(F, 4)` as x1, y1, x2, y2 in [0, 1]."""
    if source in WHOLE_FRAME:
        return np.tile([0.0, 0.0, 1.0, 1.0], (len(path.angle), 1))
    return path.boxes(SMALLEST, LARGEST)

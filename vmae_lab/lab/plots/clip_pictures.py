"""Pictures and animations of clips: masks, reconstructions, nearest clips, attention."""

import io
from collections.abc import Mapping, Sequence

import av
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from vmae_lab.lab.plots.style import BLACK, BLUE, GREY, RED
from vmae_lab.lab.plots.text import short_lines, wrapped

HIDDEN = (0.55, 0.55, 0.58)  # color of masked patches
QUERIES = 6
Strip = tuple[np.ndarray, Mapping[str, np.ndarray]]  # frames of a clip, and maps of its tokens by kind
MILLISECONDS = 250  # per frame of an animation
REPEATS = 4  # of the clip in a video file, which does not loop by itself
MIN_HEIGHT, MARGIN, HEAD = 144, 6, 20  # pixels: a picture's least height, around a picture, and above it for its name


def painted(frames: np.ndarray, mask: np.ndarray, patch: int) -> np.ndarray:
    """Cover masked patches with gray. frames: uint8 `(T', H, W, 3)`; mask: bool `(T', H', W')`. Returns the shape of frames."""
    covered = np.kron(mask, np.ones((1, patch, patch), dtype=bool))[..., None]
    return np.where(covered, np.array(HIDDEN) * 255, frames).astype(np.uint8)


def neighbour_pictures(
    frames: np.ndarray, queries: Sequence[int], neighbours: np.ndarray, names: Sequence[str], labels: np.ndarray | None
) -> Figure:
    """Show query clips and their nearest clips, one row per query.

    With labels, a neighbor of the query's class has a blue border and `=` before its name; others have red and `x`.

    frames: a picture per clip, uint8 `(n, H, W, 3)`; neighbours: rows of the nearest clips of each clip `(n, k)`.
    """
    nearest = neighbours[list(queries)]
    rows, columns = nearest.shape
    titles = [wrapped(name, 40, 15) for name in names]
    lines = max(title.count("\n") for title in titles)
    widths = [1.0, 0.18, *[1.0] * columns]
    figure, grid = plt.subplots(
        rows, columns + 2, figsize=(1.25 * sum(widths), (1.45 + 0.16 * lines) * rows + 0.3), squeeze=False,
        gridspec_kw={"width_ratios": widths, "wspace": 0.12}, layout="constrained",
    )  # fmt: skip
    for row_axes, query, found in zip(grid, queries, nearest, strict=True):
        row_axes[1].axis("off")
        show_picture(row_axes[0], frames[query], titles[query], BLACK)
        for axes, clip in zip(row_axes[2:], found, strict=True):
            sign, colour = "", GREY
            if labels is not None:
                sign, colour = ("= ", BLUE) if labels[clip] == labels[query] else ("x ", RED)
            show_picture(axes, frames[clip], sign + titles[clip], colour)
    for axes, heading in ((grid[0, 0], "query"), (grid[0, 2], "nearest clips →")):
        axes.annotate(heading, (0, 1), (0, 18 + 11 * lines), "axes fraction", "offset points", fontsize=9, weight="bold")
    return figure


def attention_strips(strips: Mapping[str, Strip]) -> Figure:
    """Show clips, each as a row of frames and a row per kind of map below it.

    All maps of a kind have one color scale, from zero to their largest value.

    strips: name -> frames uint8 `(T', H, W, 3)`, and by kind a value per token `(T', h, w)`. All clips have the same kinds.
    """
    columns = max(len(frames) for frames, _ in strips.values())
    kinds = list(next(iter(strips.values()))[1])
    highest = {kind: max(float(maps[kind].max()) for _, maps in strips.values()) for kind in kinds}
    rows = 1 + len(kinds)
    figure, grid = plt.subplots(
        rows * len(strips), columns, figsize=(1.25 * columns + 2.6, 1.25 * rows * len(strips)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for number, (name, (frames, maps)) in enumerate(strips.items()):
        upper, *others = grid[rows * number : rows * (number + 1)]
        for axes, frame in zip(upper, frames, strict=True):
            axes.imshow(frame, interpolation="nearest")
        for kind, lower in zip(kinds, others, strict=True):
            for axes, values in zip(lower, maps[kind], strict=True):
                image = axes.imshow(values / highest[kind], cmap="cividis", vmin=0, vmax=1)
        for axes, label in zip((upper[0], *(lower[0] for lower in others)), (short_lines(name), *kinds), strict=True):
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    bar = figure.colorbar(image, ax=grid, shrink=0.6)
    bar.set_label("1: the largest value of this kind of map", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def strips(
    rows: Mapping[str, Sequence[np.ndarray] | np.ndarray], columns: Sequence[str] = (), legend: Mapping[str, str] | None = None
) -> Figure:
    """Show rows of pictures of one shape, uint8 `(H, W, 3)`, next to their names. `columns`: titles; `legend`: label -> color.

    They are drawn as a single image, which is much faster than one axes per picture.
    """
    tiles = np.stack([np.stack(list(frames)) for frames in rows.values()])
    lines, count, height, width, _ = tiles.shape
    gap = max(1, height // 24)
    padded = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)
    left, below, above = 1.6, 0.6 if legend else 0.05, 0.3  # inches; a picture has one
    wide, high = left + count, below + lines + above
    figure = plt.figure(figsize=(wide, high))
    axes = figure.add_axes((left / wide, below / high, count / wide, lines / high))
    axes.imshow(rearrange(padded, "row step h w c -> (row h) (step w) c"), interpolation="nearest", aspect="auto")
    names = [short_lines(name) for name in rows]
    axes.set_xticks((width - 1) / 2 + (width + gap) * np.arange(count), columns or [""] * count, fontsize=8)
    axes.set_yticks((height - 1) / 2 + (height + gap) * np.arange(lines), names, fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    sns.despine(ax=axes, left=True, bottom=True)
    if legend:
        patches = [Patch(color=color, label=label) for label, color in legend.items()]
        figure.legend(handles=patches, loc="lower center", ncols=2, fontsize=8)
    return figure


def show_picture(axes: plt.Axes, frame: np.ndarray, title: str, colour: str) -> None:
    """Draw a picture with a border and a title of one color."""
    axes.imshow(frame, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, color=colour, pad=3)
    axes.spines[:].set(visible=True, color=colour, linewidth=2.5)


def looping_gif(strips: Mapping[str, np.ndarray], form: str = "GIF") -> bytes:
    """Return an endless animation of clips side by side, with their names above. strips: name -> uint8 `(T, H, W, 3)`."""
    pages, written = _pages(strips), io.BytesIO()
    pages[0].save(written, form, save_all=True, append_images=pages[1:], duration=MILLISECONDS, loop=0)
    return written.getvalue()


def looping_png(strips: Mapping[str, np.ndarray]) -> bytes:
    """Return `looping_gif` as an animated PNG. A viewer that cannot play it shows its first frame."""
    return looping_gif(strips, "PNG")


def playing_mp4(strips: Mapping[str, np.ndarray]) -> bytes:
    """Return `looping_gif` as an H.264 video that repeats the clips a few times."""
    pages, written = [np.asarray(page) for page in _pages(strips)], io.BytesIO()
    height, width, _ = pages[0].shape
    pages = [np.pad(page, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255) for page in pages]  # even sides
    with av.open(written, "w", format="mp4") as output:
        stream = output.add_stream("h264", rate=1000 // MILLISECONDS)
        stream.height, stream.width = pages[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for page in pages * REPEATS:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(page), format="rgb24")))
        output.mux(stream.encode())
    return written.getvalue()


def _pages(strips: Mapping[str, np.ndarray]) -> list[Image.Image]:
    """Return the frames of an animation."""
    frames, height, width, _ = next(iter(strips.values())).shape
    scale = -(-MIN_HEIGHT // height)
    step, total_height = scale * width + MARGIN, scale * height + HEAD + MARGIN
    pages = [Image.new("RGB", (len(strips) * step + MARGIN, total_height), "white") for _ in range(frames)]
    font = ImageFont.load_default(size=12)
    for x, (name, strip) in zip(range(MARGIN, len(strips) * step, step), strips.items(), strict=True):
        for page, frame in zip(pages, strip, strict=True):
            page.paste(Image.fromarray(frame).resize((scale * width, scale * height), Image.Resampling.NEAREST), (x, HEAD))
            ImageDraw.Draw(page).text((x, 3), name, fill="black", font=font)
    return pages

"""Pictures and animations of clips: masks, reconstructions, nearest clips, attention."""

import io
from collections.abc import Mapping, Sequence

import av
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from vmae_lab.lab.plots.style import BLACK, BLUE, GREY, RED
from vmae_lab.lab.plots.text import short, wrapped

HIDDEN = (0.55, 0.55, 0.58)  # colour of masked patches
QUERIES = 6
Strip = tuple[np.ndarray, np.ndarray]  # frames of a clip, and a map for each
TALL = 144  # least height of a picture, in pixels
MILLISECONDS = 250  # per frame
REPEATS = 4  # of the clip in a video file, which does not loop by itself
MARGIN, HEAD = 6, 20  # pixels around a picture, and above it for its name


def mask_gallery(video: np.ndarray, masks: Mapping[str, tuple[np.ndarray, np.ndarray]], tubelet: int, patch: int) -> Figure:
    """A clip, what the encoder sees, and what each arm's decoder rebuilds, one column per time step.

    video: uint8 `(T, H, W, 3)`; masks: label -> encoder and decoder mask, bool `(T', H', W')`, True = masked.
    """
    frames = video[::tubelet]
    encoder_mask = next(iter(masks.values()))[0]
    rows = {"clip": frames, "encoder sees": painted(frames, encoder_mask, patch)}
    rows |= {f"decodes: {short(label)}": painted(frames, decoder_mask, patch) for label, (_, decoder_mask) in masks.items()}
    return strips(rows, f"time step of the token grid ({tubelet} frames each) →")


def painted(frames: np.ndarray, mask: np.ndarray, patch: int) -> np.ndarray:
    """Cover masked patches with grey. frames: uint8 `(T', H, W, 3)`; mask: bool `(T', H', W')`. Returns the shape of frames."""
    covered = np.kron(mask, np.ones((1, patch, patch), dtype=bool))[..., None]
    return np.where(covered, np.array(HIDDEN) * 255, frames).astype(np.uint8)


def neighbour_pictures(
    frames: np.ndarray, queries: Sequence[int], neighbours: np.ndarray, names: Sequence[str], labels: np.ndarray | None
) -> Figure:  # fmt: skip
    """Query clips and their nearest ones, a row a query, in pictures `(n, H, W, 3)`; names say what each clip is.

    With labels, a neighbour's frame is blue and its name begins with `=` where its class is the query's, or vermilion and `x`.
    """
    near = neighbours[list(queries)]
    rows, columns = near.shape
    titles = [wrapped(name, 40, 15) for name in names]
    lines = max(title.count("\n") for title in titles)
    widths = [1.0, 0.18, *[1.0] * columns]
    figure, grid = plt.subplots(
        rows, columns + 2, figsize=(1.25 * sum(widths), (1.45 + 0.16 * lines) * rows + 0.3), squeeze=False,
        gridspec_kw={"width_ratios": widths, "wspace": 0.12}, layout="constrained",
    )  # fmt: skip
    for line, query, found in zip(grid, queries, near, strict=True):
        line[1].axis("off")
        show_picture(line[0], frames[query], titles[query], BLACK)
        for axes, row in zip(line[2:], found, strict=True):
            sign, colour = "", GREY
            if labels is not None:
                sign, colour = ("= ", BLUE) if labels[row] == labels[query] else ("x ", RED)
            show_picture(axes, frames[row], sign + titles[row], colour)
    grid[0, 0].annotate("query", (0, 1), (0, 18 + 11 * lines), "axes fraction", "offset points", fontsize=9, weight="bold")
    grid[0, 2].annotate(
        "nearest clips →", (0, 1), (0, 18 + 11 * lines), "axes fraction", "offset points", fontsize=9, weight="bold"
    )
    return figure


def attention_strips(strips: Mapping[str, Strip]) -> Figure:
    """Clips, each a row of frames uint8 `(T', H, W, 3)` and below it the share of each token `(T', h, w)`, on one scale."""
    columns = max(len(frames) for frames, _ in strips.values())
    figure, grid = plt.subplots(
        2 * len(strips), columns, figsize=(1.25 * columns + 2.6, 2.5 * len(strips)), squeeze=False, layout="constrained"
    )
    most = max(float(shares.max()) for _, shares in strips.values())
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for place, (name, (frames, shares)) in enumerate(strips.items()):
        upper, lower = grid[2 * place], grid[2 * place + 1]
        for frame, share, above, below in zip(frames, shares, upper, lower, strict=True):
            above.imshow(frame, interpolation="nearest")
            drawn = below.imshow(share, cmap="cividis", vmin=0, vmax=most)
        for axes, label in ((upper[0], short(name)), (lower[0], "attention")):
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    bar = figure.colorbar(drawn, ax=grid, shrink=0.6)
    bar.set_label("share of attention (1: all tokens equal)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def looping_gif(strips: Mapping[str, np.ndarray]) -> bytes:
    """A GIF of clips that play next to one another under their names, without end.

    strips: name -> uint8 `(T, H, W, 3)`, all of one shape.
    """
    return _written(_pages(strips), "GIF")


def looping_png(strips: Mapping[str, np.ndarray]) -> bytes:
    """The same as an animated PNG: a viewer that cannot play it shows its first frame, as of any PNG."""
    return _written(_pages(strips), "PNG")


def playing_mp4(strips: Mapping[str, np.ndarray]) -> bytes:
    """The same as an H.264 video that plays the clips a few times."""
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
    frames, height, width, _ = next(iter(strips.values())).shape
    factor = -(-TALL // height)
    wide, tall = factor * width + MARGIN, factor * height + HEAD + MARGIN
    pages = [Image.new("RGB", (len(strips) * wide + MARGIN, tall), "white") for _ in range(frames)]
    font = ImageFont.load_default(size=12)
    for place, (name, strip) in enumerate(strips.items()):
        for page, frame in zip(pages, strip, strict=True):
            picture = Image.fromarray(frame).resize((factor * width, factor * height), Image.Resampling.NEAREST)
            page.paste(picture, (place * wide + MARGIN, HEAD))
            ImageDraw.Draw(page).text((place * wide + MARGIN, 3), name, fill="black", font=font)
    return pages


def _written(pages: list[Image.Image], form: str) -> bytes:
    written = io.BytesIO()
    pages[0].save(written, form, save_all=True, append_images=pages[1:], duration=MILLISECONDS, loop=0)
    return written.getvalue()


def strips(rows: Mapping[str, Sequence[np.ndarray] | np.ndarray], xlabel: str = "") -> Figure:
    """Rows of small pictures under their names; the grid has the pictures' own proportions, so that no gaps open."""
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(0.95 * columns, 0.95 * len(rows)),
        squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06, "left": 0, "right": 1, "bottom": 0, "top": 1},
    )
    for line, (name, frames) in zip(axes, rows.items(), strict=True):
        for place, frame in zip(line, frames, strict=True):
            place.imshow(frame, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            sns.despine(ax=place, left=True, bottom=True)
        shown = "\n".join(short(part) for part in name.splitlines() or [""])
        line[0].set_ylabel(shown, rotation=0, ha="right", va="center", fontsize=9)
    figure.text(0.5, -0.02, xlabel, ha="center", va="top", fontsize=9)
    return figure


def show_picture(axes: plt.Axes, frame: np.ndarray, title: str, colour: str) -> None:
    axes.imshow(frame, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, color=colour, pad=3)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)

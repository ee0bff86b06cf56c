"""The style of all figures: palette, fonts, and how they are saved."""

from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib.figure import Figure

from vmae_lab.lab.plots.text import fallback_fonts
from vmae_lab.utils.atomic_io import atomic_write, make_folder

# The palette of Okabe and Ito for color-blind readers, with gray instead of yellow, which is faint on white.
GREY, BLACK, ORANGE, RED, PINK, SKY, BLUE, GREEN = (
    "#777777", "#000000", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73",
)  # fmt: skip
# Color -> line style and hatch of bars, to distinguish arms in grayscale print.
PRINTED: dict[str, tuple[Any, str]] = {
    GREY: ("--", ""), BLACK: ("-", "++"), ORANGE: ((0, (6, 2)), ".."), RED: ("-.", "xx"), PINK: ((0, (1, 1)), "oo"),
    SKY: ((0, (2, 1)), "--"), BLUE: ("-", "//"), GREEN: ((0, (6, 1, 1, 1, 1, 1)), "\\\\"),
}  # fmt: skip
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK, GREY), "osD^vP*X"
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 160, "savefig.bbox": "tight", "svg.hashsalt": "vmae_lab", "font.size": 10,
    "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def use_style() -> None:
    """Apply the style to all figures."""
    sns.set_theme(context="notebook", style="ticks", rc={**STYLE, "font.family": ["sans-serif", *fallback_fonts()]})


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write `<name>.png` and `<name>.svg`, the same bytes for the same figure. Returns the path of the PNG."""
    make_folder(folder)
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with atomic_write(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata)
    return folder / f"{name}.png"

"""The colours of all figures, and the dashes and hatches that replace them in print."""

from typing import Any

# Okabe and Ito's palette for colour-blind readers, without its yellow (faint on white), with a grey.
GREY, BLACK, ORANGE, RED, PINK, SKY, BLUE, GREEN = (
    "#777777", "#000000", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73",
)  # fmt: skip
# Per colour: the dashes of a line and the hatch of a bar, for print in greys.
PRINTED: dict[str, tuple[Any, str]] = {
    GREY: ("--", ""), BLACK: ("-", "++"), ORANGE: ((0, (6, 2)), ".."), RED: ("-.", "xx"), PINK: ((0, (1, 1)), "oo"),
    SKY: ((0, (2, 1)), "--"), BLUE: ("-", "//"), GREEN: ((0, (6, 1, 1, 1, 1, 1)), "\\\\"),
}  # fmt: skip

"""Names from users in figures, tables and pages: of classes, files, sources and arms."""

import io
import re
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.plots import charts, clip_pictures, curves, detection, style
from vmae_lab.lab.plots.text import NO_NAME, markdown, short
from vmae_lab.lab.report.tables import save_table

NAMES = {
    "dollars": "$x_1^{2$ and more",
    "one dollar": "5$",
    "escaped dollar": r"a\$b$c$",
    "subscript": "a_b^c",
    "leading underscore": "_private",
    "backslash": r"C:\new\table",
    "percent": "50% & #1 ~ {x}",
    "pipe": "a|b",
    "html": "<b>bold</b> & &amp; <script>",
    "stars": "*em* **bold** `code` ~~gone~~",
    "link": "[text](http://nowhere)",
    "bracket first": "[0.5em] or *",
    "lines": "first\nsecond\r\n\tthird",
    "empty": "",
    "blank": " \t",
    "long": "very long " * 300,
    "one word": "PersonWalksThroughDoor" * 200,
    "emoji": "run 🏃🏽‍♀️ fast",
    "chinese": "跑步",
    "arabic": "ركض",
    "combining": "e\u0301a\u0327 \u0301",
    "control": "a\x00b\x1b[31mc\x7f",
    "direction": "a\u202eb",
}
FRAMES = np.zeros((2, 8, 8, 3), np.uint8)


def summary(names) -> pd.DataFrame:
    return pd.DataFrame({"mean": 50.0, "std": 1.0, "low": 49.0, "high": 51.0}, index=list(names))


def arms(name):
    return {"a": replace(DECODER_MASKS["none"], label=name), "b": replace(DECODER_MASKS["running_cell_50"], label=f"{name} 2")}


def segments(name) -> pd.DataFrame:
    return pd.DataFrame({"start": [0.0], "end": [5.0], "label": [name], "right": [False]})


CURVES = pd.DataFrame({"arm": ["a", "a", "b", "b"], "seed": 0, "step": [5, 10, 5, 10], "loss": [1.0, 0.5, 0.9, 0.6]})
ALONG = pd.DataFrame({
    "arm": ["a", "a", "b", "b"], "step": [5, 10, 5, 10], "macs": [5e6, 1e7, 4e6, 8e6],
    "mean": [1.0, 2.0, 1.5, 2.5], "low": [0.5, 1.5, 1.0, 2.0], "high": [1.5, 2.5, 2.0, 3.0],
})  # fmt: skip
APART = ALONG.rename(columns={"mean": "difference"}).assign(equal=["steps", "compute"] * 2)
VALIDATED = CURVES.assign(validation_loss=[1.0, 0.8, 0.9, 1.2], validation_accuracy=[10.0, 40.0, 20.0, 30.0])
DRAWN = {
    "accuracy_curves": lambda name: curves.accuracy_curves(ALONG, arms(name), "top-1"),
    "difference_curves": lambda name: curves.difference_curves(APART, arms(name), "a", "points"),
    "validation_curves": lambda name: curves.validation_curves(VALIDATED, arms(name), "start from"),
    "clip_map": lambda name: charts.clip_map(np.random.default_rng(0).random((4, 2)), [name, name, "b", "c"], name),
    "neighbour_pictures": lambda name: clip_pictures.neighbour_pictures(
        np.zeros((3, 8, 8, 3), np.uint8), [0], np.array([[1, 2], [0, 2], [0, 1]]), [name, "b", name], np.array([0, 1, 0])
    ),
    "confusion_matrix": lambda name: charts.confusion_matrix(np.eye(3, dtype=int), [name, f"{name}!", "c"]),
    "attention_strips": lambda name: clip_pictures.attention_strips({name: (FRAMES, {"attention": np.ones((2, 2, 2))})}),
    "scene_strips": lambda name: detection.scene_strips(
        [detection.Scene(FRAMES, 0, np.array([[0.1, 0.1, 0.5, 0.5]]), np.zeros((0, 4)), [name], [])]
    ),
    "timelines": lambda name: detection.timelines([detection.Timeline(name, 9.0, {name: segments(name)})], [name, "b"]),
    "strips": lambda name: clip_pictures.strips({name: FRAMES}),
    "loss_curves": lambda name: charts.loss_curves(CURVES, arms(name)),
    "accuracy_against_cost": lambda name: charts.accuracy_against_cost(
        summary("ab"), {"a": 1.0, "b": 2.0}, arms(name), "a", 12.5, "top-1"
    ),
    "heat_maps": lambda name: charts.heat_maps({name: pd.DataFrame([[1.0, 2.0]], index=[name], columns=[name, "b"])}, "x", "y"),
    "dots_by_arm": lambda name: charts.dots_by_arm({name: summary("ab")}, arms(name), 12.5, "top-1"),
    "bars_by_class": lambda name: charts.bars_by_class({"a": summary([name, "b"])}, arms(name), {name: 1.0, "b": 2.0}, "AP"),
    "stacked_shares": lambda name: charts.stacked_shares(
        pd.DataFrame([[40.0, 60.0], [1.0, 99.0]], index=[name, "b"], columns=[name, "c"]), "%"
    ),
    "lines_by_arm": lambda name: charts.lines_by_arm({"a": summary([10, 20])}, arms(name), "labels", "top-1", 12.5),
    "panels_over_sizes": lambda name: charts.panels_over_sizes(
        {name: pd.DataFrame({"a": [1.0, 2.0]}, index=[name, "b"])}, arms(name)
    ),
    "slopes": lambda name: charts.slopes(pd.DataFrame({"slope": [1.0], "low": [0.5], "high": [1.5]}, index=[name]), "points"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn_without_a_warning(draw, name) -> tuple[list[str], tuple[int, int]]:
    """Return the texts of a figure, and its size in pixels at 40 dpi."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, written = draw(name), io.BytesIO()
        figure.savefig(written, format="png", dpi=40, bbox_inches="tight")
    return [text.get_text() for text in figure.findobj(Text)], Image.open(written).size


# All figures shorten names with the same function, `short`. So only two figures draw all names. These have titles, axes, ticks
# and legends. The others draw one name per kind of failure: a formula, a label that a legend hides, a text without width, a
# very wide text, and a character that the font lacks.
BREAKING = ("dollars", "leading underscore", "empty", "long", "chinese")
PAIRS = [(draw, name) for draw in DRAWN for name in (NAMES if draw in ("heat_maps", "lines_by_arm") else BREAKING)]


@pytest.mark.parametrize(("draw", "name"), PAIRS)
def test_a_figure_shows_any_name(draw, name):
    """There is no error, no warning of a missing character, no formula, and no very wide picture."""
    draw, name = DRAWN[draw], NAMES[name]
    with plt.rc_context():
        style.use_style()
        texts, size = drawn_without_a_warning(draw, name)
    assert any(short(name)[:8].strip() in text.replace("\n", " ") for text in texts), "the name is shown"
    assert max(size) < 1200


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_also_without_the_style_of_the_workbook(draw):
    drawn_without_a_warning(draw, "$x_1^{2$ 跑")


def test_every_figure_function_is_tried():
    """All functions in these modules that return a figure."""
    made = {
        name
        for module in (charts, clip_pictures, curves, detection)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        if getattr(value, "__annotations__", {}).get("return") is plt.Figure
    }
    assert made == set(DRAWN)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_short_name_is_one_line_and_stays_as_it_is(name):
    shown = short(name, 30)
    assert shown == short(shown, 30)
    assert shown.strip()
    assert len(shown.replace(r"\$", "$")) <= 31
    assert shown.isprintable()


def test_a_name_says_what_cannot_be_drawn():
    assert short("跑") == r"\u8dd1"
    assert short("caf\udce9") == r"caf\udce9"
    assert short("") == short(" \n") == NO_NAME
    assert short("ركض") == "ركض", "the default font has it"


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_table_holds_any_name(name, tmp_path):
    """Markdown and LaTeX have as many cells and lines as the table, and no markup from names."""
    page = save_table(pd.DataFrame({name or "x": [name, "b"], "top-1": ["1.0 ± 0.5", "+1.2 [-0.3, +2.7]"]}), tmp_path, "table")
    lines = page.splitlines()
    assert [len(cells_of(line)) for line in lines] == [2, 2, 2, 2]
    assert cells_of(lines[2])[0] == markdown(name)
    assert not re.search(r"<|(?<!\\)[*`$~]", page)
    paper = (tmp_path / "table.tex").read_text(encoding="utf-8")
    rows = [line for line in paper.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert not any(re.search(r"(?<!\\)[$%#_]", row.replace(r"\textasciitilde{}", "")) for row in rows)
    assert not any(re.match(r"\s*[\[*]", row) for row in rows), "LaTeX would read it as part of the line's end"
    assert (tmp_path / "table.csv").exists()


def test_numbers_and_plain_words_of_a_table_stay_as_they_are():
    for cell in ("70.1 ± 0.4", "+1.2 [-0.3, +2.7]", "35.48 -> 25.87", "running_cell_50", "top-1 %", "2 x 16 x 16", "#3 (1)"):
        assert markdown(cell) == cell


@pytest.mark.parametrize("draw", ["strips", "attention_strips"])
def test_labels_of_strips_keep_their_lines(draw):
    label = "2. zoom_out\npredicted: turning_clockwise\n(probability 0.31)"
    texts, _ = drawn_without_a_warning(DRAWN[draw], label)
    assert label in texts, "shortened as one line, it would lose its middle"


@pytest.mark.parametrize("panels", [1, 2])
def test_each_panel_of_dots_has_its_label_below_it(panels):
    """Long names of arms make the panels narrow, so the middle of the figure is not the middle of the panels."""
    named = {f"panel {number}": summary("ab") for number in range(panels)}
    figure = charts.dots_by_arm(named, arms("a student with a long name"), 12.5, "top-1, %")
    figure.canvas.draw()
    for axes in figure.axes:
        label = axes.xaxis.label.get_window_extent()
        assert axes.get_xlabel() == "top-1, %"
        assert (label.x0 + label.x1) / 2 == pytest.approx(sum(axes.get_window_extent().intervalx) / 2, abs=2)

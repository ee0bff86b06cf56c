"""Result figures in README.md, docs/ and the notebooks' texts are those of the committed reports. Times are not checked."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from vmae_lab.data.motionworld import ACTIONS
from vmae_lab.lab.notebook_run import checked_parameters

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "reports"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
SPREAD = r"\d+\.\d+ ± \d+\.\d+"
DIFFERENCE = r"[+-]\d+\.\d+ \[[+-]\d+\.\d+, [+-]\d+\.\d+\]"
# 70.1, 7%, 1.42 x and 5 points are results. Not: 95% of an interval, "within 2 points" of a verdict, 12 of 2026-11-12.
RESULT = re.compile(r"(?<![\w.-])(?:\d+\.\d+|\d+(?=%| to \d+%| x\b| (?:to \d+ )?points\b))(?![\w-])")
NOT_A_RESULT = re.compile(r"`[^`]*`|95%\s+(?:confidence\s+)?interval|(?:within|less than) \d+ points|\d+% of its forward cost")

# ---- Figures next to a link to their report ----


def texts(path: Path) -> list[str]:
    """Return the paragraphs and the table rows of a page, without code blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?=\||- )", "\n", text, flags=re.MULTILINE)  # a row or a list item is a text
    return re.split(r"\n\s*\n", text)


def linked_reports(text: str) -> list[Path]:
    """Return the pages below reports/ that a text links to, without the index."""
    links = re.findall(r"\]\((?:\.\./)?reports/([^)#]+\.md)", text)
    return [REPORTS / link for link in dict.fromkeys(links) if link != "README.md"]


def results_in(text: str) -> list[str]:
    """Return the results that a text states, as they are written, without those of `NOT_A_RESULT` and without links."""
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return [*re.findall(f"{SPREAD}|{DIFFERENCE}", text), *RESULT.findall(NOT_A_RESULT.sub("", text))]


def states(page: str, figure: str) -> bool:
    """Return whether a page has a figure. A single number may be a rounded one of the page."""
    if not re.fullmatch(r"[\d.]+", figure):
        return figure in page
    unit = 10.0 ** -len(figure.partition(".")[2])
    numbers = map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?", page))
    return any(abs(number - float(figure)) <= 0.5 * unit + 1e-9 for number in numbers)


def texts_and_reports(path: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the texts with links to reports: a table row with its own links, other texts with all links of their section."""
    section: list[str] = []
    for text in [*texts(path), "# end"]:
        if text.lstrip().startswith("#"):
            links = linked_reports("\n".join(section))
            for part in filter(linked_reports, section):
                yield part, linked_reports(part) if part.lstrip().startswith("|") else links
            section = []
        section.append(text)


@each_page
def test_figures_next_to_a_link_to_a_report_are_in_that_report(path):
    for text, reports in texts_and_reports(path):
        if reports:
            page = "\n".join(report.read_text(encoding="utf-8").replace(" %", "%") for report in reports)
            missing = [figure for figure in results_in(text) if not states(page, figure)]
            assert not missing, f"{path.name}: {', '.join(missing)} are not in the report of: {text.strip()[:200]}"


def readme_rows() -> list[list[str]]:
    """Return the cells of each table row of README.md that links to a report."""
    rows = [text.strip() for text in texts(ROOT / "README.md") if text.strip().startswith("|") and linked_reports(text)]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_differences_of_the_readme_are_those_of_their_rows():
    for cells in readme_rows():
        means = [float(cell.split(" ± ")[0]) for cell in cells if re.fullmatch(SPREAD, cell)]
        differences = [float(cell.split(" [")[0]) for cell in cells if re.fullmatch(DIFFERENCE, cell)]
        if len(means) == 2:
            assert differences[0] == pytest.approx(means[1] - means[0], abs=0.11), cells


# ---- Sentences without a link, and values that are computed from a table ----


@cache
def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.csv", dtype=str, keep_default_na=False, encoding="utf-8")


def cell(report: str, name: str, row: str, column: int) -> str:
    """Return a cell of a report's table, by the text of its row's first cell."""
    frame = table(REPORTS / report, name)
    [found] = [cells[column] for cells in frame.to_numpy() if cells[0].replace(" %", "%") == row]
    return found


def mean(report: str, name: str, row: str) -> str:
    """Return the mean of the accuracy in the second column."""
    return cell(report, name, row, 1).split(" ± ")[0]


def below_patch_mean(report: str) -> tuple[float, float]:
    """Return the smallest and largest distance of an arm's reconstruction error from the patch mean's, in percent of it."""
    rows = pd.read_csv(REPORTS / report / "tables" / "results.csv")
    means = rows.groupby(["arm", "metric"]).value.mean().unstack().dropna(subset="reconstruction")
    below = 100 * (1 - means.reconstruction / means.cube_mean)
    return below.min(), below.max()


def embedded_clips(scale: str) -> int:
    world = checked_parameters(ROOT / "notebooks" / "ablation_decoder_mask.ipynb", scale, {})[1].recipe.data.motionworld
    return len(world.sources) * len(ACTIONS) * (world.train + world.validation + world.test)


def contains(document: str, *sentences: str) -> None:
    text = " ".join("\n\n".join(texts(ROOT / document)).split())
    missing = [sentence for sentence in sentences if sentence not in text]
    assert not missing, f"{document} does not have: {missing}"


def test_the_readme_has_the_verdicts_of_the_decoder_masks():
    """Its rows that end in the name of an arm, such as "(cell 50%)"."""
    study, none = "study20/ablation_decoder_mask", "none (V1)"
    rows = {name[1]: cells for cells in readme_rows() if (name := re.search(r"\(((?:cell|frame|random) \d+%)\)$", cells[0]))}
    assert {"cell 50%", "random 50%"} <= rows.keys()
    for arm, (_, paper, difference, verdict, _) in rows.items():
        assert (difference, verdict) == (cell(study, "decoder_mask", arm, 2), cell(study, "decoder_mask", arm, 3)), arm
        reported = [cell(study, "decoder_mask", row, 6) for row in (arm, none)]
        assert paper.startswith(f"{reported[0]}, without mask {reported[1]}"), arm


def test_the_readme_describes_its_first_table():
    study = "study20/ablation_decoder_mask"
    recipe = json.loads((REPORTS / study / "manifest.json").read_text())["recipe"]
    assert len(recipe["seeds"]) == 20
    contains(
        "README.md",
        f"With {len(ACTIONS)} classes, chance is {100 / len(ACTIONS):g}%",
        "without a decoder mask (twenty seeds)",
        f"with {recipe['evaluate']['probe']['labels']} labeled clips",
        f"Without a decoder mask, its accuracy is {cell(study, 'decoder_mask', 'none (V1)', 1)}%. "
        f"With an encoder that is not pre-trained, it is {cell(study, 'decoder_mask', 'no pre-training', 1)}%",
        f"the accuracy differs by less than {recipe['evaluate']['margin']:g} points",
    )
    stated = [result for text in texts(ROOT / "README.md") if not linked_reports(text) for result in results_in(text)]
    untested = set(stated) - {f"{100 / len(ACTIONS):g}"}
    assert untested == {"90", "3.11", "3.13", "2303.16727", "2203.12602"}, "the paper's mask ratio, versions, arXiv"
    halves = [cell(study, "decoder_mask", f"{kind} 50%", 3) for kind in ("cell", "frame", "random")]
    assert set(halves) == {f"equivalent within {recipe['evaluate']['margin']:g} points"}


def test_the_answers_on_small_data_and_reconstructions_have_the_reports_values():
    labels = "demo/downstream_action_classification"
    scratch, tuned = "trained from scratch", "pre-trained, then fine-tuned"
    demo, study = (below_patch_mean(f"{scale}/ablation_decoder_mask") for scale in ("demo", "study"))
    contains(
        "docs/faq.md",
        f"160 labels reach {mean(labels, 'methods', scratch)}% after 50 steps and "
        f"{mean(labels, 'methods', f'{scratch}, 6 x the steps')}% after 300 steps. With pre-training they reach "
        f"{mean(labels, 'methods', tuned)}% and {mean(labels, 'methods', f'{tuned}, 6 x the steps')}%",
        f"the error is only {demo[0]:.3f}% to {demo[1]:.3f}% (scale `demo`) and {study[0]:.3f}% to {study[1]:.3f}% "
        "(scale `study`) below that of the patch means",
    )


def test_the_notebook_on_decoder_masks_has_the_counted_costs():
    """Of the masks that its text calls equivalent."""
    study = "study/ablation_decoder_mask"
    none, most, least = (float(cell(study, "decoder_mask", row, 5)) for row in ("none (V1)", "cell 25%", "frame 50%"))
    costs = f"at {100 * least / none:.0f} to {100 * most / none:.0f}% of its forward cost"
    contains("notebooks/ablation_decoder_mask.ipynb", costs)


def test_recipes_have_the_scales_counts_and_ratio():
    compute = table(REPORTS / "demo/ablation_decoder_mask", "equal_compute")
    [ratio] = {int(cells[1]) / 100 for cells in compute.to_numpy() if cells[0].replace(" %", "%") == "cell 75%"}
    clips = {scale: f"{embedded_clips(scale):,} embedded clips" for scale in ("smoke", "demo", "gpu")}
    contains("docs/recipes.md", f"with step {ratio} x *n* for a 75% cell mask at scale `demo`", *clips.values())


# ---- The table of costs in docs/recipes.md ----


def macs(notebook: str, scale: str, kind: str, arms: str | None) -> float:
    """Return the multiply-accumulates of the stages of a kind, at one seed, in units of 1e15."""
    changes = {"seeds": "[0]"} | ({"arms": arms} if arms else {})
    plan = checked_parameters(ROOT / "notebooks" / f"{notebook}.ipynb", scale, changes)[1]
    return sum(stage.macs for stage in plan.stages if stage.kind == kind) / 1e15


def test_the_cost_of_the_papers_recipes_is_that_of_their_plans():
    """One pre-training and one training on labels, of all arms for the scale `paper`. Hours: at 100e12 per second."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(paper[\w/]*)`.*? \| ([\d,]+) \| ([\d,]+).* \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 13
    for scale, *figures in rows:
        notebook, kind, arms = {
            "paper": ("ablation_decoder_mask", "finetune", None),
            "paper/ava": ("downstream_spatial_detection", "detect", "[pretrained]"),
            "paper/thumos14": ("downstream_temporal_detection", "post_pretrain", None),
        }.get(scale, ("downstream_action_classification", "finetune", "[pretrained]"))
        pretraining, learning = macs(notebook, scale, "pretrain", arms), macs(notebook, scale, kind, arms)
        stated = [float(figure.replace(",", "")) for figure in figures]
        assert stated[:2] == [float(f"{pretraining:.4g}"), float(f"{learning:.4g}")], scale
        assert stated[2] == round((pretraining + learning) * 1e15 / 100e12 / 3600), scale

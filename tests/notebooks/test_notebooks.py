"""The notebooks at the smoke scale, run by papermill and by the command line; nbval finds a changed output."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from vmae_lab.cli import main
from vmae_lab.lab.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
NBVAL = ("-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=600", "-q", "-p", "no:cacheprovider")


@pytest.fixture
def root(home, project, warm) -> Path:
    return project


@pytest.fixture(scope="module")
def together(home, tmp_path_factory) -> Path:
    """A project in which all notebooks share their stages."""
    return tmp_path_factory.mktemp("project")


# The tables and figures of each report.
SHOWN = {
    "00_dual_masking_tour": (("tokens", "errors"), ("masks", "leakage", "cost")),
    "ablation_decoder_mask": (
        ("decoder_mask", "equal_compute", "details", "controls"),
        (
            "accuracy_against_cost",
            "accuracy_against_compute",
            "difference_against_steps",
            "masks",
            "loss",
            "reconstruction",
        ),
    ),
    "ablation_mask_ratios": (("mask_ratios", "grid", "impossible"), ("maps", "pareto")),
    "ablation_hybrid_data": (("hybrid_data", "pools"), ("accuracy", "shares")),
    "ablation_progressive_training": (("progressive", "differences", "post_pretraining"), ("accuracy",)),
    "cost_of_dual_masking": (("speed_up", "counted", "measured", "batches"), ("panels",)),
    "bring_your_own_videos": (
        ("readouts", "retrieval", "confused", "check"),
        ("neighbours", "map", "confusion", "reconstruction", "loss", "clips"),
    ),
    "downstream_action_classification": (("methods", "views", "classes"), ("confusion", "attention", "loss")),
    "downstream_spatial_detection": (("detection", "classes", "reported"), ("classes", "scenes", "loss")),
    "downstream_temporal_detection": (
        ("localisation", "errors", "durations", "reported"),
        ("timelines", "errors", "classes", "loss"),
    ),
    "distillation": (("students", "sizes"), ("accuracy", "loss")),
    "scaling": (("scaling", "trend"), ("accuracy", "accuracy_against_compute", "trend")),
    "use_a_checkpoint": (
        ("methods", "checkpoint", "predictions"),
        ("accuracy", "layers", "reconstruction", "class_maps", "loss"),
    ),
}


def test_every_experiment_has_a_notebook():
    assert set(SHOWN) == set(EXPERIMENTS) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


def warned(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the lines that an executed notebook writes to the error stream. Progress is not written there."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
    return [line for line in "".join(output.text for output in outputs).splitlines() if line.strip()]


def test_a_warning_is_found():
    streams = {"stderr": "UserWarning: a mean of an empty slice\n", "stdout": "2/49 stages 4%\n"}
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams.items()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    assert warned(notebook) == ["UserWarning: a mean of an empty slice"]


def report_of(name: str, project: Path) -> Path:
    """Run a notebook with plain papermill and its default parameters. Returns the folder of its report."""
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", ROOT / "notebooks" / f"{name}.ipynb", project / "out.ipynb"],
        capture_output=True,
        text=True,
        cwd=project,
        env={**os.environ, "VMAE_LAB_PROJECT": str(project)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return project / "reports" / "smoke" / name


@pytest.mark.parametrize("name", list(SHOWN))
def test_papermill_at_the_smoke_scale_writes_a_complete_report(name, together, warm):
    """All arms in one project; then every file of the report."""
    folder, (tables, figures) = report_of(name, together), SHOWN[name]
    assert not warned(nbformat.read(together / "out.ipynb", as_version=4))
    rows = pd.read_csv(folder / "tables" / "results.csv")
    if name == "00_dual_masking_tour":
        assert rows.empty, "the tour evaluates nothing"
    else:
        arms = [arm for arm in EXPERIMENTS[name].arms if name != "cost_of_dual_masking" or arm.startswith("small_")]
        assert set(rows.arm) - {"controls"} == set(arms), "every arm is reported, or of sizes those that are measured"
        assert set(rows[rows.arm != "controls"].seed) == ({0} if EXPERIMENTS[name].one_seed else {0, 1})
    assert all((together / "runs" / stage / "result.json").exists() for stage in rows.stage.unique())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(rows.stage) <= set(manifest["stages"])
    assert manifest["provenance"]["packages"]["torch"]
    assert (manifest["main_table"], manifest["main_figure"]) == (tables[0], figures[0])
    page = (folder / "README.md").read_text()
    assert all(sentence in page for sentence in manifest["conclusions"])
    for table in tables:
        empty = pd.read_csv(folder / "tables" / f"{table}.csv").empty  # then the page has only the caption
        assert ((folder / "tables" / f"{table}.md").read_text().strip() in page) == (not empty)
        assert (folder / "tables" / f"{table}.tex").read_text().startswith("\\begin{tabular}")
    for figure in figures:
        assert f"figures/{figure}.png" in page
        assert (folder / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{figure}.svg").read_text()
    assert not list(together.rglob("*.tmp"))


def test_two_runs_write_the_same_files_except_the_manifest(together, tmp_path, warm):
    """The second run has its own store, so it computes all stages again."""

    def content(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}

    first, second = (content(report_of("ablation_decoder_mask", project)) for project in (together, tmp_path))
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"manifest.json"}


def test_nbval_finds_every_stored_output(together, warm):
    """All notebooks run again and reuse the stages of the papermill runs above."""
    environment = {**os.environ, "VMAE_LAB_PROJECT": str(together)}
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    done = subprocess.run(
        [sys.executable, *NBVAL, *notebooks], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    cells = sum(cell.cell_type == "code" for path in notebooks for cell in nbformat.read(path, 4).cells)
    assert f"{cells} passed" in done.stdout


def test_the_command_line_runs_a_subset_and_reuses_it(root, capfd):
    """One seed and one arm, without the baseline and the floor. The second call computes nothing."""
    notebook = str(ROOT / "notebooks" / "ablation_decoder_mask.ipynb")
    command = ["run", notebook, "--scale", "smoke", "-p", "seeds", "[0]", "-p", "arms", "[running_cell_50_all]"]
    assert main(command) == 0
    first = capfd.readouterr().out
    [page] = (root / "reports").glob("smoke-variant-*/ablation_decoder_mask/README.md")
    assert first.strip().splitlines()[-1] == f"report: {page}"
    results = sorted((root / "runs").glob("*/result.json"))
    written = [path.stat().st_mtime_ns for path in results]
    assert main(command) == 0
    assert "nothing to compute" in capfd.readouterr().out
    assert [path.stat().st_mtime_ns for path in results] == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "notebooks/none.ipynb"], "there is no notebook"),
        (
            ["plan", "NOTEBOOK", "--scale", "hugh"],
            r"there is no parameter file .*hugh.yaml; scales in .*: demo, gpu, own, own_checkpoint, paper, smoke",
        ),
        (["run", "NOTEBOOK", "-p", "pretrain.stpes", "3"], r"did you mean 'steps'"),
        (["run", "NOTEBOOK", "-p", "seeds", "[0"], r"seeds: '\[0' is not valid YAML"),
    ],
)
def test_errors_on_the_command_line_are_one_message(words, message, root, capsys):
    notebook = str(ROOT / "notebooks" / "ablation_decoder_mask.ipynb")
    assert main([notebook if word == "NOTEBOOK" else word for word in words]) == 2
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(capsys.readouterr().err))
    assert not (root / "runs").exists()


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_a_plan_is_costed_without_running_it(scale, root, capsys):
    assert main(["plan", str(ROOT / "notebooks" / "ablation_decoder_mask.ipynb"), "--scale", scale]) == 0
    shown = capsys.readouterr().out
    seeds = len(yaml.safe_load((ROOT / "params" / f"{scale}.yaml").read_text())["seeds"])
    assert f"pretrain: {7 * seeds:3d} stages (0 finished)" in shown
    assert not (root / "runs").exists()


def test_nbval_catches_a_changed_output(root):
    """A copy has only the tables of counts and mask pictures, with a changed number and a changed hash."""
    notebook = nbformat.read(ROOT / "notebooks" / "ablation_decoder_mask.ipynb", as_version=4)
    counts, _, pictures = checked = [cell for cell in notebook.cells if "NBVAL_CHECK_OUTPUT" in cell.source]
    notebook.cells = notebook.cells[:4] + checked  # imports, parameters and recipe, and what is compared
    nbformat.write(notebook, root / "true.ipynb")
    digest = re.search(r"\b[0-9a-f]{12}\b", pictures.outputs[0].text)[0]
    for cell, old, new in ((counts, "128", "129"), (pictures, digest, digest[::-1])):
        cell.outputs[0].text = cell.outputs[0].text.replace(old, new, 1)
    nbformat.write(notebook, root / "false.ipynb")
    command = [sys.executable, *NBVAL, "true.ipynb", "false.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 1
    failed = re.findall(r"^FAILED (\w+)\.ipynb", done.stdout, re.MULTILINE)
    assert failed == ["false", "false"], done.stdout[-2000:]
    assert "129" in done.stdout
    assert digest[::-1] in done.stdout

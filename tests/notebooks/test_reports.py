"""Where each way to run a notebook leaves its report: papermill, the command line, JupyterLab and nbval."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from vmae_lab.cli import main

ROOT = Path(__file__).parents[2]
NAME = "00_dual_masking_tour"
REPORT = """
results = lab.run()
lab.report(results, ["A tour"])
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def small(home, project, monkeypatch) -> Path:
    """A project with two scales of a few steps, and the tour as far as its plan, which is then reported."""
    (project / "params").mkdir()
    (project / "notebooks").mkdir()
    text = (ROOT / "params" / "smoke.yaml").read_text().replace("warmup_steps: 2", "warmup_steps: 1")
    (project / "params" / "smoke.yaml").write_text(text)
    (project / "params" / "demo.yaml").write_text(text.replace("scale: smoke", "scale: demo").replace("steps: 6", "steps: 3"))
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAME}.ipynb", as_version=4)
    setup, parameters, recipe = [cell for cell in notebook.cells if cell.cell_type == "code"][:3]
    recipe.source = "\n".join(line for line in recipe.source.splitlines() if "widgets" not in line)
    notebook.cells = [setup, parameters, recipe, nbformat.v4.new_code_cell(REPORT)]
    nbformat.write(notebook, project / "notebooks" / f"{NAME}.ipynb")
    monkeypatch.chdir(project)
    return project


def run_papermill(place: Path, notebook: str, *words: str) -> str:
    """What plain papermill prints of a notebook, or the error that stopped it."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", notebook, "out.ipynb", *words]
    subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    outputs = [one for cell in nbformat.read(place / "out.ipynb", 4).cells for one in cell.get("outputs", ())]
    return "\n".join(one.get("evalue") or one.text for one in outputs if one.get("evalue") or one.get("name") == "stdout")


def reports(place: Path) -> dict[str, dict]:
    """Every report's manifest by its folder."""
    found = (place / "reports").glob("*/*/manifest.json")
    return {path.parent.relative_to(place / "reports").as_posix(): json.loads(path.read_text()) for path in found}


def test_papermill_runs_the_scale_that_it_is_given_and_replaces_no_other_report(small):
    notebook, mine = f"notebooks/{NAME}.ipynb", f"demo/{NAME}"
    assert f"new report: reports/{mine}\n" in run_papermill(small, notebook, "-p", "scale", "demo")
    assert reports(small)[mine]["recipe"]["pretrain"]["steps"] == 3
    page = small / "reports" / mine / "README.md"
    before = page.read_text()
    assert "Scale `demo`, seeds 0;" in before
    assert f"Made by `{notebook}`;" in before
    said = run_papermill(small, notebook, "-p", "scale", "demo", "-p", "override", "{pretrain.steps: 4}", "-p", "seeds", "[1]")
    [variant] = set(reports(small)) - {mine}
    assert f"new report: reports/{variant}\n" in said
    assert re.fullmatch(rf"demo-variant-[0-9a-f]{{6}}/{NAME}", variant)
    assert reports(small)[variant]["changed"] == {"pretrain.steps": 4, "seeds": [1]}
    assert page.read_text() == before
    assert main(["run", notebook, "--scale", "demo", "-p", "pretrain.steps", "4", "-p", "seeds", "1"]) == 0
    assert set(reports(small)) == {mine, variant}, "the command line comes to the same folder"
    assert f"replaced reports/{mine} of 20" in run_papermill(small, notebook, "-f", "params/demo.yaml")


def test_a_copy_is_reported_under_its_own_name(small, capfd):
    original, copy = small / "notebooks" / f"{NAME}.ipynb", small / "notebooks" / "my_copy.ipynb"
    run_papermill(small, f"notebooks/{NAME}.ipynb")
    page = small / "reports" / "smoke" / NAME / "README.md"
    before = page.read_text()
    copy.write_text(original.read_text())
    assert "new report: reports/smoke/my_copy\n" in run_papermill(small, "notebooks/my_copy.ipynb")
    papermill.execute_notebook(copy, "out.ipynb", progress_bar=False)
    assert main(["run", str(copy), "--scale", "smoke"]) == 0
    assert "replaced reports/smoke/my_copy of 20" in capfd.readouterr().out
    assert subprocess.run([sys.executable, "-m", "pytest", "-q", "--nbval-lax", copy], check=False).returncode == 0
    elsewhere = small / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / original.name).write_text(original.read_text())
    run_papermill(elsewhere, original.name)
    found = reports(small)
    [far] = set(found) - {f"smoke/{NAME}", "smoke/my_copy"}
    assert (found[far]["notebook_file"], found["smoke/my_copy"]["notebook_file"]) == (
        f"elsewhere/{NAME}.ipynb",
        "notebooks/my_copy.ipynb",
    )
    assert "`notebooks/my_copy.ipynb`" in (small / "reports" / "smoke" / "my_copy" / "README.md").read_text()
    assert page.read_text() == before
    assert main(["report"]) == 0
    assert "notebook: notebooks/my_copy.ipynb" in (small / "reports" / "README.md").read_text()


async def run_in_session(root: Path, path: str) -> None:
    """All cells of a notebook in a kernel of a Jupyter server's session, as JupyterLab starts it."""
    from jupyter_server.services.contents.filemanager import FileContentsManager
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
    from jupyter_server.services.sessions.sessionmanager import SessionManager

    kernels = AsyncMappingKernelManager(root_dir=str(root))
    sessions = SessionManager(kernel_manager=kernels, contents_manager=FileContentsManager(root_dir=str(root)))
    session = await sessions.create_session(path=path, name=Path(path).name, type="notebook", kernel_name="python3")
    client = kernels.get_kernel(session["kernel"]["id"]).client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        for cell in nbformat.read(root / path, 4).cells:
            reply = await client.execute_interactive(cell.source, timeout=300, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        await kernels.shutdown_kernel(session["kernel"]["id"], now=True)


def test_jupyterlab_reports_under_the_file_that_is_open(small):
    copy = small / "notebooks" / "my_copy.ipynb"
    copy.write_text((small / "notebooks" / f"{NAME}.ipynb").read_text())
    asyncio.run(run_in_session(small, "notebooks/my_copy.ipynb"))
    asyncio.run(run_in_session(small / "notebooks", f"{NAME}.ipynb"))
    assert set(reports(small)) == {"smoke/my_copy", f"smoke/{NAME}"}


def test_what_papermill_cannot_set_is_answered(small):
    said = run_papermill(small, f"notebooks/{NAME}.ipynb", "-p", "pretrain.steps", "3")
    assert "-p override '{pretrain.steps: 3}'" in said
    assert not (small / "reports").exists()


def test_an_edited_notebook_is_not_taken_for_the_committed_one(small):
    def git(*words: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *words], cwd=small, check=True, capture_output=True)

    git("init")
    git("add", "notebooks")
    git("commit", "-m", "one")
    path = small / "notebooks" / f"{NAME}.ipynb"
    page = small / "reports" / "smoke" / NAME / "README.md"
    run_papermill(small, f"notebooks/{NAME}.ipynb")
    assert f"Made by `notebooks/{NAME}.ipynb`;" in page.read_text()
    first = reports(small)[f"smoke/{NAME}"]["notebook_code"]
    path.write_text(path.read_text().replace("A tour", "My tour"))
    said = run_papermill(small, f"notebooks/{NAME}.ipynb")
    assert re.search(rf"replaced reports/smoke/{NAME} of 20.*; the code of the notebook was another one\n", said)
    assert f"Made by `notebooks/{NAME}.ipynb`, whose code is changed since the last commit;" in page.read_text()
    assert reports(small)[f"smoke/{NAME}"]["notebook_code"]["digest"] != first["digest"]

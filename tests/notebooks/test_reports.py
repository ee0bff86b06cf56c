"""The report folders of notebooks that papermill, the command line, JupyterLab and nbval run."""

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
    """A project with two scales of a few steps, and the tour, shortened to its plan and its report."""
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


def run_papermill(folder: Path, notebook: str, *arguments: str) -> str:
    """Run a notebook with plain papermill. Returns its output, or the error that stopped it."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", notebook, "out.ipynb", *arguments]
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    outputs = [output for cell in nbformat.read(folder / "out.ipynb", 4).cells for output in cell.get("outputs", ())]
    shown = (output.get("evalue") or (output.get("name") == "stdout" and output.text) for output in outputs)
    return "\n".join(filter(None, shown))


def reports(root: Path) -> dict[str, dict]:
    """Return the manifests of all reports by folder."""
    found = (root / "reports").glob("*/*/manifest.json")
    return {path.parent.relative_to(root / "reports").as_posix(): json.loads(path.read_text()) for path in found}


def test_papermill_runs_the_given_scale_and_replaces_no_other_report(small):
    notebook, mine = f"notebooks/{NAME}.ipynb", f"demo/{NAME}"
    assert f"new report: reports/{mine}\n" in run_papermill(small, notebook, "-p", "scale", "demo")
    assert reports(small)[mine]["recipe"]["pretrain"]["steps"] == 3
    page = small / "reports" / mine / "README.md"
    before = page.read_text()
    assert "Scale `demo`, seeds 0." in before
    assert f"Made by `{notebook}`." in before
    output = run_papermill(
        small, notebook, "-p", "scale", "demo", "-p", "override", "{pretrain.steps: 4}", "-p", "seeds", "[1]"
    )
    [variant] = set(reports(small)) - {mine}
    assert f"new report: reports/{variant}\n" in output
    assert re.fullmatch(rf"demo-variant-[0-9a-f]{{6}}/{NAME}", variant)
    assert reports(small)[variant]["changed"] == {"pretrain.steps": 4, "seeds": [1]}
    assert page.read_text() == before
    assert main(["run", notebook, "--scale", "demo", "-p", "pretrain.steps", "4", "-p", "seeds", "1"]) == 0
    assert set(reports(small)) == {mine, variant}, "the command line uses the same folder"
    for suffix in ("ipynb", "html"):
        text = (small / "reports" / variant / f"{NAME}.{suffix}").read_text(encoding="utf-8")
        assert f"report: reports/{variant}/README.md" in text
        assert str(small) not in text, "an executed notebook has no paths of this machine"
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
    [other] = set(found) - {f"smoke/{NAME}", "smoke/my_copy"}
    assert (found[other]["notebook_file"], found["smoke/my_copy"]["notebook_file"]) == (
        f"elsewhere/{NAME}.ipynb",
        "notebooks/my_copy.ipynb",
    )
    assert "`notebooks/my_copy.ipynb`" in (small / "reports" / "smoke" / "my_copy" / "README.md").read_text()
    assert page.read_text() == before
    assert main(["report"]) == 0
    assert "notebook: notebooks/my_copy.ipynb" in (small / "reports" / "README.md").read_text()


async def run_in_session(root: Path, path: str) -> None:
    """Run all cells of a notebook in a kernel of a Jupyter server's session, as JupyterLab does."""
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


def test_the_error_about_a_dotted_name_has_the_right_command(small):
    output = run_papermill(small, f"notebooks/{NAME}.ipynb", "-p", "pretrain.steps", "3")
    assert "-p override '{pretrain.steps: 3}'" in output
    assert not (small / "reports").exists()


def test_a_report_names_changes_of_the_notebook_since_the_last_commit(small):
    def git(*words: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *words], cwd=small, check=True, capture_output=True)

    git("init")
    git("add", "notebooks")
    git("commit", "-m", "one")
    path = small / "notebooks" / f"{NAME}.ipynb"
    page = small / "reports" / "smoke" / NAME / "README.md"
    run_papermill(small, f"notebooks/{NAME}.ipynb")
    assert f"Made by `notebooks/{NAME}.ipynb`." in page.read_text()
    first = reports(small)[f"smoke/{NAME}"]["notebook_code"]
    path.write_text(path.read_text().replace("A tour", "My tour"))
    output = run_papermill(small, f"notebooks/{NAME}.ipynb")
    assert re.search(rf"replaced reports/smoke/{NAME} of 20.*; the notebook's code has changed since\n", output)
    assert f"Made by `notebooks/{NAME}.ipynb`, whose code is changed since the last commit." in page.read_text()
    assert reports(small)[f"smoke/{NAME}"]["notebook_code"]["digest"] != first["digest"]

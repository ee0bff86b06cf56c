"""Folders of reports: one per notebook file and settings. No report replaces one of another run."""

import json
import shutil
from pathlib import Path

import pytest

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.report.folder import report_place
from vmae_lab.lab.scales import read_scale

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params"
NAME = "ablation_decoder_mask"


@pytest.fixture
def root(project) -> Path:
    shutil.copytree(PARAMS, project / "params")
    (project / "notebooks").mkdir()
    for name in (f"notebooks/{NAME}.ipynb", "notebooks/copy.ipynb", f"{NAME}.ipynb"):
        (project / name).write_text("{}")
    return project


def place(root: Path, scale: str = "demo", file: str | None = f"notebooks/{NAME}.ipynb", name: str = NAME, **override):
    """Return the place of a run's report, and the keys of its manifest that decide the place."""
    book = EXPERIMENTS[name]
    recipe = build_recipe({"override": override}, book.arms, {"arms": list(book.arms), **read_scale(scale, [root / "params"])})
    path = root / file if file else None
    found = report_place(plan_notebook(name, recipe), path.stem if path else name, path)
    return found, {"notebook_file": file, "experiment": name, "recipe": recipe.model_dump(mode="json")}


def written(root: Path, *arguments, **override) -> str:
    """Write a manifest at the place of a run's report. Returns the folder."""
    found, manifest = place(root, *arguments, **override)
    found.folder.mkdir(parents=True, exist_ok=True)
    (found.folder / "manifest.json").write_text(json.dumps({**manifest, "provenance": {"date": "2026-01-02"}}))
    return found.folder.relative_to(root / "reports").as_posix()


def test_an_unchanged_scale_has_its_own_folder_and_replaces_its_own_report(root):
    assert written(root) == f"demo/{NAME}"
    found, _ = place(root)
    assert found.replaced
    assert (found.folder.parent.name, found.changed) == ("demo", {})
    assert found.message.startswith(f"replaced reports/demo/{NAME} of 2026-01-02")


def test_settings_that_change_no_result_have_no_folder_of_their_own(root):
    changes = {"compute.jobs": 1, "detect.steps": 160, "evaluate.views.clips": 9}  # this notebook has no detection stage
    assert written(root, **changes) == f"demo/{NAME}"


def test_other_settings_have_a_folder_each(root):
    written(root)
    folders = {written(root, **{"pretrain.steps": steps}) for steps in (900, 901)}
    folders |= {written(root, seeds=[0]), written(root, arms=["none"]), written(root, **{"measure.steps": 9})}
    assert len(folders) == 5
    assert all(folder.startswith("demo-variant-") and folder.endswith(f"/{NAME}") for folder in folders)
    found, _ = place(root, **{"pretrain.steps": "900"})
    assert found.replaced, "the same settings in another form"
    assert found.changed == {"pretrain.steps": 900}


def test_after_a_change_of_the_scale_the_old_report_stays(root):
    written(root)
    file = root / "params" / "demo.yaml"
    file.write_text(file.read_text().replace("steps: 1000", "steps: 1001"))
    found, _ = place(root)
    assert found.folder.parent.name.startswith("demo-variant-")
    assert f"kept reports/demo/{NAME}" in found.message


def test_another_file_of_the_same_scales_name_replaces_nothing(root):
    """`cp params/demo.yaml mine.yaml` without changing its scale."""
    mine = root / "mine.yaml"
    mine.write_text((root / "params" / "demo.yaml").read_text().replace("steps: 1000", "steps: 500"))
    assert written(root, str(mine)).startswith("demo-variant-")
    mine.write_text(mine.read_text().replace("scale: demo", "scale: mine"))
    assert written(root, str(mine)) == f"mine/{NAME}"
    assert written(root, str(mine), seeds=[0]).startswith("mine-variant-")


def test_a_copy_has_a_report_of_its_own(root):
    assert written(root) == f"demo/{NAME}"
    assert written(root, "demo", "notebooks/copy.ipynb") == "demo/copy"
    elsewhere = written(root, "demo", f"{NAME}.ipynb")
    assert elsewhere.startswith(f"demo/{NAME}-")
    unknown = written(root, "demo", None)
    assert unknown.startswith(f"demo/{NAME}-")
    assert unknown != elsewhere
    for arguments in ((), ("demo", "notebooks/copy.ipynb"), ("demo", f"{NAME}.ipynb"), ("demo", None)):
        assert place(root, *arguments)[0].replaced, "each one finds its own folder again"


def test_a_copy_that_ran_first_does_not_take_the_originals_folder(root):
    assert written(root, "demo", f"{NAME}.ipynb") != f"demo/{NAME}"
    assert written(root) == f"demo/{NAME}"


def test_another_experiment_under_the_same_name_is_another_report(root):
    assert written(root) == f"demo/{NAME}"
    assert written(root, "demo", f"notebooks/{NAME}.ipynb", "ablation_mask_ratios").startswith("demo-variant-")


def test_a_report_without_a_manifest_or_with_a_broken_one_is_replaced(root):
    folder = root / "reports" / "demo" / NAME
    folder.mkdir(parents=True)
    for text in ("", "[]", "{"):
        (folder / "manifest.json").write_text(text)
        assert place(root)[0].folder == folder


@pytest.mark.slow
def test_committed_reports_are_found_again(monkeypatch):
    """A run with the settings of a scale replaces its report."""
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(ROOT))
    assert {path.parent.name for path in (ROOT / "reports" / "demo").glob("*/manifest.json")} == set(EXPERIMENTS)
    again = []
    for path in sorted((ROOT / "reports").glob("*/*/manifest.json")):
        scale, name = path.parts[-3:-1]
        if scale in ("demo", "study", "study20"):
            found, _ = place(ROOT, scale, f"notebooks/{name}.ipynb", name)
            again += [f"{scale}/{name}"] if (found.folder, bool(found.replaced)) == (path.parent, True) else []
    current = [f"demo/{name}" for name in sorted(EXPERIMENTS)]
    studies = ["/".join(path.parts[-3:-1]) for path in sorted(ROOT.glob("reports/study*/*/manifest.json"))]
    assert again == [*current, *studies]


def test_a_report_of_other_videos_stays(root, tmp_path):
    """The settings can be the same: if the root is relative, or if videos were added."""
    for number in (4, 5):
        for label in ("run", "walk"):
            (tmp_path / "v" / label).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                (tmp_path / "v" / label / f"{i}.mp4").touch()
        changes = {"data.lists.root": str(tmp_path / "v")}
        found, manifest = place(root, "own", "notebooks/copy.ipynb", "bring_your_own_videos", **changes)
        assert found.replaced is None
        plan = plan_notebook("bring_your_own_videos", build_recipe({**manifest["recipe"]}))
        found.folder.mkdir(parents=True)
        stages = {stage.key: {} for stage in plan.stages}
        (found.folder / "manifest.json").write_text(json.dumps({**manifest, "stages": stages}))
        assert place(root, "own", "notebooks/copy.ipynb", "bring_your_own_videos", **changes)[0].replaced is not None


def test_a_removed_key_of_a_dictionary_is_a_change_too(root):
    book = "downstream_temporal_detection"
    folders = {
        place(root, "demo", f"notebooks/{book}.ipynb", book, **{"localise.durations": {name: [0, 2.5]}})[0].folder
        for name in ("short", "medium")
    }
    assert len(folders) == 2

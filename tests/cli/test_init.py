"""`vmae-lab init`: what it copies, that the folder is a project, and that it overwrites nothing."""

from pathlib import Path

from vmae_lab.cli import main
from vmae_lab.utils.paths import project_root

ROOT = Path(__file__).parents[2]


def test_a_folder_of_init_is_a_project(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VMAE_LAB_PROJECT", raising=False)
    folder = tmp_path / "my lab"
    assert main(["init", str(folder)]) == 0
    assert f"cd '{folder}'\n" in capsys.readouterr().out
    for path in ("params/smoke.yaml", "params/paper/k400.yaml", "params/accelerate/one_gpu.yaml", "notebooks/scaling.ipynb"):
        assert (folder / path).read_bytes() == (ROOT / path).read_bytes()
    assert {path.name for path in (folder / "notebooks").iterdir()} == {path.name for path in ROOT.glob("notebooks/*.ipynb")}
    monkeypatch.chdir(folder / "notebooks")
    assert project_root() == folder


def test_existing_files_are_kept_unless_forced(tmp_path, capsys):
    own = tmp_path / "params" / "smoke.yaml"
    own.parent.mkdir()
    own.write_text("scale: mine")
    assert main(["init", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "params/smoke.yaml" in message
    assert "--force" in message
    assert own.read_text() == "scale: mine"
    assert [path.name for path in tmp_path.iterdir()] == ["params"], "nothing is copied"
    assert main(["init", str(tmp_path), "--force"]) == 0
    assert own.read_bytes() == (ROOT / "params" / "smoke.yaml").read_bytes()

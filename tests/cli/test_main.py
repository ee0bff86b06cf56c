"""The command line: help with examples, exit statuses, and options that typer cannot parse by itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vmae_lab import __version__
from vmae_lab.cli import app, main
from vmae_lab.data import kinetics710 as kinetics
from vmae_lab.data.decoding import VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.evaluation.features import FeatureSettings
from vmae_lab.lab import notebook_run
from vmae_lab.lab.report import index
from vmae_lab.training.preemption import STOPPED, Stopped

COMMANDS = [
    "init", "run", "plan", "report", "pretrain", "finetune", "evaluate", "detect", "localise", "persons", "predict",
    "reconstruct", "features", "export", "bench", "doctor", "info",
    "data check", "data transcode", "data pack", "data kinetics710",
]  # fmt: skip


def test_the_list_of_commands_here_is_complete():
    top = typer.main.get_command(app)
    inside = [f"data {name}" for name in top.commands["data"].commands]
    assert sorted(COMMANDS) == sorted([*(name for name in top.commands if name != "data"), *inside])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example_that_can_be_copied(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    example = shown[shown.index("Example") :].splitlines()[1]
    assert example.startswith(f"    vmae-lab {command}")


def test_the_help_of_data_shows_examples(capsys):
    assert main(["data", "--help"]) == 0
    assert "  vmae-lab data check . --root" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_parameter_has_a_help_text_and_arguments_are_in_capitals(command, capsys):
    found = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    for parameter in found.params:
        assert parameter.help, f"{command}: {parameter.name}"
    assert main([*command.split(), "--help"]) == 0
    usage = " ".join(capsys.readouterr().out.split("\n\n")[0].split()).removeprefix(f"Usage: vmae-lab {command}")
    assert usage.upper() == usage


def test_the_help_of_plan_says_that_nothing_runs(capsys):
    assert main(["plan", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "run one after another" not in shown
    assert "Nothing is run" in shown


@pytest.mark.slow
def test_help_and_usage_errors_import_no_torch():
    """Nor pandas and numpy, so they take a fraction of a second."""
    words = [["--help"], ["run", "--help"], ["doctor", "--json", "a.txt"], ["run"], ["none"], ["features", "."], ["--version"]]
    script = f"""
import sys
from vmae_lab.cli import main
assert [main(words) for words in {words}] == [0, 0, 2, 2, 2, 2, 0]
assert not {{"torch", "pandas", "numpy"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_defaults_of_commands_are_those_of_the_settings():
    """The commands repeat them, because they do not import the settings before they run."""
    top = typer.main.get_command(app)

    def defaults(command: typer.core.TyperGroup | typer.core.TyperCommand) -> dict:
        return {parameter.name: parameter.default for parameter in command.params}

    checked, windows, merged = (
        defaults(top.commands["data"].commands["check"]),
        defaults(top.commands["features"]),
        defaults(top.commands["data"].commands["kinetics710"]),
    )
    limits = VideoSettings()
    assert {name: checked[name] for name in ("max_pixels", "memory_mib", "timeout_s")} == {
        "max_pixels": limits.max_pixels, "memory_mib": limits.memory_mib, "timeout_s": limits.timeout_s
    }  # fmt: skip
    features = FeatureSettings()
    written = [windows[name] for name in ("stride", "frame", "scale_only", "form")]
    assert written == [features.stride, features.frame, features.scale_only, features.format]
    assert checked["frame_pattern"] == windows["frame_pattern"] == FRAMES
    assert merged["path_pattern"] == kinetics.PATH_PATTERN


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vmae-lab {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage: vmae-lab"),
        (["data"], "Usage: vmae-lab data"),
        (["none"], "No such command 'none'"),
        (["run", "--fast", "a.ipynb"], "No such option: --fast"),
        (["run"], "Missing argument"),
        (["run", "a.ipynb", "-p", "pretrain.steps"], "a name and a value are expected"),
        (["run", "a.ipynb", "-p", "pretrain.steps=3", "--scale", "demo"], "a name and a value are expected"),
        (["features", ".", "--model", "m", "--format", "mat"], "'mat'"),
        (["features", ".", "--model", "m", "--frames", "0"], "--frames"),
        (["data", "check", ".", "--memory-mib", "100"], "--memory-mib"),
        (["data", "check", ".", "--max-pixels", "0"], "--max-pixels"),
        (["data", "check", ".", "--timeout-s", "0"], "--timeout-s"),
        (["data", "check", ".", "--processes", "0"], "--processes"),
        (["data", "pack", ".", "shards", "--shard-mib", "0"], "--shard-mib"),
        (["data", "kinetics710", "--out", "k"], "--k400, --k600, --k700"),
        (["pretrain", "none.yaml"], "there is no parameter file none.yaml"),
    ],
)
def test_a_usage_error_has_status_2_and_one_message(words, message, project, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "words", [["pretrain", "smoke"], ["run", "notebooks/scaling.ipynb"], ["plan", "notebooks/scaling.ipynb"], ["bench"]]
)
def test_outside_a_checkout_the_message_names_the_variable(words, tmp_path, monkeypatch, capsys):
    """The installed wheel has no params/, notebooks/ and benchmarks/."""
    monkeypatch.delenv("VMAE_LAB_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "set VMAE_LAB_PROJECT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "no file is written"


def test_inside_a_checkout_only_the_wrong_name_is_reported(monkeypatch, capsys):
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(Path(__file__).parents[2]))
    assert main(["pretrain", "smok"]) == 2
    message = capsys.readouterr().err
    assert "smoke" in message
    assert "VMAE_LAB_PROJECT" not in message


def test_without_papermill_the_message_has_the_command_to_install_it(monkeypatch, capsys):
    """It is installed with the extra `lab`. Importing the package and training do not need it."""
    monkeypatch.setattr(notebook_run, "find_spec", lambda name: None)
    notebook = Path(__file__).parents[2] / "notebooks" / "scaling.ipynb"
    assert main(["run", str(notebook), "--scale", "smoke"]) == 2
    assert "pip install 'vmae-lab[lab]'" in capsys.readouterr().err


def test_a_run_that_was_stopped_ends_with_its_own_status(monkeypatch):
    def stopped(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(index, "write_index", stopped)
    with pytest.raises(Stopped) as ended:
        main(["report"])
    assert ended.value.code == STOPPED


def parsed(command: str, *words: str) -> dict:
    """The values that a command line gives to a command's function."""
    top = typer.main.get_command(app)
    found = top.commands["data"].commands[command] if command == "kinetics710" else top.commands[command]
    return found.make_context(command, list(words)).params


def test_names_and_values_are_joined_at_any_position():
    values = parsed("run", "a", "-p", "x", "-1", "b", "--override", "y", "a=b")
    assert [str(path) for path in values["notebooks"]] == ["a", "b"]
    assert list(values["override"]) == ["x=-1", "y=a=b"]
    assert [str(path) for path in parsed("run", "--", "-p", "x")["notebooks"]] == ["-p", "x"]


def test_options_of_several_files_are_repeated():
    values = parsed("kinetics710", "--k400", "a", "b", "--out", "o", "--k600", "c")
    assert {name: [str(path) for path in values[name]] for name in ("k400", "k600")} == {"k400": ["a", "b"], "k600": ["c"]}
    assert str(values["out"]) == "o"


def test_annotations_of_several_files_are_merged(tmp_path, capsys):
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text(f"label,youtube_id,time_start,time_end,split\njuggling,{name},0,10,{name}\n")
    files = [str(tmp_path / f"{name}.csv") for name in ("train", "val")]
    (tmp_path / "classes.txt").write_text("juggling\n")
    words = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "out")]
    assert main(["data", "kinetics710", "--k400", *files, *words]) == 0
    assert f"lists, classes and conversions: {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "train.csv").read_text().splitlines()[1] == "train_000000_000010.mp4,0"
    pattern = ["--path-pattern", "{source}/{youtube_id}.mkv"]
    assert main(["data", "kinetics710", "--k400", *files, *words, *pattern]) == 0
    assert (tmp_path / "out" / "train.csv").read_text().splitlines()[1] == "k400/train.mkv,0"
    assert main(["data", "kinetics710", "--k400", *files, *words, "--path-pattern", "{name}.mkv"]) == 2
    assert "path_pattern '{name}.mkv' cannot be filled with youtube_id, " in capsys.readouterr().err

"""`vmae-lab pretrain`, `finetune`, `evaluate` at the smoke scale: with pre-training, from scratch, from checkpoints."""

from pathlib import Path

import pytest
import torch

from vmae_lab.cli import main
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.stages import opened_classifier_stage, opened_stage
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import CheckpointError, open_checkpoint, read_weights
from vmae_lab.models.checkpoints.save import save_checkpoint
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.atomic_io import read_json

SMOKE = str(Path(__file__).parents[2] / "params" / "smoke.yaml")
CLIP = ClipShape(frames=8, side=24, tubelet=2, patch=4)
SMALL = ["--seed", "0", "-p", "pretrain.steps", "3", "-p", "evaluate.finetune.steps", "2", "-p", "evaluate.views.clips", "1"]


@pytest.fixture
def run(project, capsys):
    """Run a command at the smallest scale. Returns the printed lines."""

    def run_command(command: str, *words: str) -> list[str]:
        assert main([command, SMOKE, *SMALL, *words]) == 0
        return capsys.readouterr().out.splitlines()

    return run_command


@pytest.fixture
def recipe(smoke):
    return build_recipe({**smoke, "arms": ["recipe"]})


def stages(project: Path, kind: str) -> list[Path]:
    return sorted((project / "runs").glob(f"{kind}-*"))


@pytest.mark.slow
def test_from_pre_training_to_an_evaluated_classifier(run, project):
    """Each command runs the stages it needs, reuses finished ones, and prints the folder of its own stage last."""
    folder = Path(run("pretrain")[-1])
    assert [folder] == stages(project, "pretrain")
    assert VideoMAE.from_pretrained(folder).size == SIZES["tiny"]
    lines = run("finetune")
    assert [folder] == stages(project, "pretrain"), "the same pre-training"
    assert lines[-2].startswith("seed 0: top-1 ")
    assert [Path(lines[-1])] == stages(project, "finetune")
    evaluated = run("evaluate")
    assert "95% interval" in evaluated[-2]
    assert [Path(lines[-1])] == stages(project, "finetune")
    metrics = read_json(Path(evaluated[-1]) / "result.json")["metrics"]
    assert f"top-1 {metrics['views_top1']:.1f}%" in evaluated[-2]
    again = run("evaluate", "--model", lines[-1])
    assert read_json(Path(again[-1]) / "result.json")["metrics"] == metrics, "the same model, opened from its folder"
    assert len(stages(project, "opened")) == 1


def test_from_scratch_there_is_no_pre_training(run, project):
    run("finetune", "--encoder", "scratch")
    assert not stages(project, "pretrain")
    assert len(stages(project, "finetune")) == 1


@pytest.mark.parametrize("kind", ["pre-trained", "classifier", "other clips", "encoder alone"])
def test_fine_tuning_starts_from_a_given_checkpoint(kind, run, project, tmp_path):
    """Only its encoder is used, also if it has other clips or another head than the recipe."""
    clip = ClipShape(frames=16, side=32, tubelet=2, patch=4) if kind == "other clips" else CLIP
    torch.manual_seed(3)
    model = VideoMAE(SIZES["tiny"], clip) if kind == "pre-trained" else VideoClassifier(SIZES["tiny"], clip, 5, "flat")
    where = model.save_pretrained(tmp_path / "checkpoint")
    if kind == "encoder alone":
        state = {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
        save_checkpoint(state, model.config.model_copy(update={"classes": None, "readout": "mean"}), where, "vmae_lab", "")
    run("finetune", "--encoder", str(where))
    assert not stages(project, "pretrain")
    (opened,) = stages(project, "opened")
    found, given = read_weights(opened / "model.safetensors"), model.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in found.items() if name.startswith("encoder."))
    run("finetune", "--encoder", str(where.rename(tmp_path / "elsewhere")))
    assert stages(project, "opened") == [opened], "named by its weights, not by its path"
    assert len(stages(project, "finetune")) == 1


def test_the_message_about_a_wrong_size_or_patch_names_both(project, tmp_path, capsys):
    for size, patch, words in (("micro", 4, "is micro (3 blocks, width 64)"), ("tiny", 8, "on patches of 2 x 8 x 8")):
        where = VideoMAE(SIZES[size], ClipShape(8, 24, 2, patch)).save_pretrained(tmp_path / size)
        assert main(["finetune", SMOKE, "--encoder", str(where)]) == 2
        message = capsys.readouterr().err
        assert words in message
        assert "the recipe's model is tiny (4 blocks, width 96) on patches of 2 x 4 x 4" in message
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (VideoMAE(SIZES["tiny"], CLIP), "no classification head"),
        (VideoClassifier(SIZES["tiny"], CLIP, 5), "5 classes, but the recipe's data has 8"),
        (VideoClassifier(SIZES["tiny"], ClipShape(8, 32, 2, 4), 8, "flat"), "flat head for 256 tokens"),
        (ActionDetector(SIZES["tiny"], CLIP, 8), "is an action detector"),
    ],
    ids=["pre-trained", "classes", "flat", "detector"],
)
def test_a_model_that_cannot_be_evaluated_is_refused(model, message, project, tmp_path, capsys):
    where = model.save_pretrained(tmp_path / "model")
    assert main(["evaluate", SMOKE, "--model", str(where)]) == 2
    assert message in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_an_opened_stage_is_named_by_weights_and_by_the_model_of_the_recipe(recipe, tmp_path):
    torch.manual_seed(0)
    places = [VideoClassifier(SIZES["tiny"], CLIP, 8).save_pretrained(tmp_path / str(n)) for n in range(2)]
    one, other = (opened_stage(recipe, open_checkpoint(place)) for place in places)
    assert one.key != other.key
    assert opened_classifier_stage(recipe, open_checkpoint(places[0])).key == one.key
    longer = recipe.with_overrides({"model.frames": 4})
    assert opened_stage(longer, open_checkpoint(places[0])).key != one.key
    with pytest.raises(CheckpointError, match="patches of 4 x 4 x 4"):
        opened_stage(recipe.with_overrides({"model.tubelet": 4}), open_checkpoint(places[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", SMOKE, "-p", "pretrain.stpes", "3"], "did you mean 'steps'"),
        (["finetune", SMOKE, "--encoder", "nowhere"], "there is no checkpoint nowhere"),
        (["evaluate", SMOKE, "--seed", "1", "--seed", "1"], "seeds: [1, 1]"),
        (["pretrain", "hugh"], "hugh.yaml"),
    ],
)
def test_mistakes_are_one_message(words, message, project, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["pretrain.accumulation", "3"], "batch_size 4 cannot be split into 1 process x 3 micro-batches: change"),
        (["compute.trackers", "[trackio]"], "compute.trackers: trackio is not installed"),
    ],
)
def test_what_this_machine_cannot_do_is_one_message(override, message, project, capsys):
    assert main(["pretrain", SMOKE, "-p", *override]) == 2
    assert f"vmae-lab: {message}" in capsys.readouterr().err


def test_scales_are_found_by_name_also_in_folders_of_params(project, capsys):
    (project / "params" / "paper").mkdir(parents=True)
    (project / "params" / "paper" / "tiny.yaml").write_text(Path(SMOKE).read_text().replace("size: tiny", "size: tinny"))
    assert main(["pretrain", "paper/tiny"]) == 2
    assert "no model size 'tinny'" in capsys.readouterr().err
    assert main(["pretrain", "tiny"]) == 2
    assert "scales in" in (said := capsys.readouterr().err)
    assert "paper/tiny" in said


def test_without_labels_there_is_nothing_to_fine_tune_on(project, smoke, capsys):
    (project / "videos").mkdir()
    lists = f"{{root: {project / 'videos'}, pretrain: .}}"
    words = ["-p", "data", f"{{lists: {lists}}}", "-p", "evaluate.sources", "[]"]
    assert main(["finetune", SMOKE, *words]) == 2
    assert "data.lists.train" in capsys.readouterr().err

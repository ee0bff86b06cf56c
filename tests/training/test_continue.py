"""Continued pre-training: what is loaded, what is drawn, and how the stage is named."""

import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_pretrain import MODEL, Noise

from vmae_lab.cli import main
from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld import MotionworldSettings
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.stages import opened_stage, pretrain_stage
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import CheckpointError, open_checkpoint, read_weights
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.seeding import seeded

CPU = torch.device("cpu")


def task(initial=None, seed: int = 0, **settings) -> PretrainTask:
    data = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16)
    training = PretrainSettings(**{"steps": 4, "batch_size": 2, "lr": 1e-3, "warmup_steps": 0, **settings})
    masks = MaskSettings(encoder="random", encoder_ratio=0.75, decoder="random")
    return PretrainTask(MODEL, masks, training, data, Noise(), seed, initial=initial)


def built(task: PretrainTask) -> VideoMAE:
    with seeded(task.seed, "initial weights"):
        return task.build()


def pretrained(encoder_norm: bool = True) -> VideoMAE:
    with seeded(7, "another model"):
        return VideoMAE(MODEL.dimensions, MODEL.clip, encoder_norm=encoder_norm)


@pytest.mark.parametrize("encoder_norm", [True, False])
def test_the_first_loss_is_that_of_the_loaded_model(encoder_norm, tmp_path):
    """Also of a model without the encoder's final LayerNorm, as transformers' are by default."""
    model = pretrained(encoder_norm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        continued = task(open_checkpoint(model.save_pretrained(tmp_path)))
        start = built(continued)
    batch = continued.training_batch(0, range(2))
    assert continued.loss(start, batch, CPU).item() == continued.loss(model, batch, CPU).item()
    assert continued.loss(built(task()), batch, CPU).item() != continued.loss(model, batch, CPU).item()


@pytest.mark.parametrize("readout", ["mean", "attentive"])
def test_a_missing_decoder_is_drawn_from_the_seed_with_a_warning(readout, tmp_path):
    classifier = VideoClassifier(MODEL.dimensions, MODEL.clip, 3, readout)
    opened = open_checkpoint(classifier.save_pretrained(tmp_path))
    with pytest.warns(UserWarning, match=r"no decoder and no encoder\.trunk\.norm\.weight"):
        start, again = (built(task(opened)).state_dict() for _ in range(2))
    fresh, theirs = built(task()).state_dict(), classifier.state_dict()
    for name, value in start.items():
        source = theirs if name in theirs and name.startswith("encoder.") else fresh
        assert torch.equal(value, source[name]), name
        assert torch.equal(value, again[name]), name
    with pytest.warns(UserWarning, match="no decoder"):
        assert not torch.equal(built(task(opened, seed=1)).mask_token, start["mask_token"])


def test_a_decoder_of_another_size_is_drawn_whole(tmp_path):
    with seeded(7, "another model"):
        model = VideoMAE(replace(MODEL.dimensions, decoder_width=24), MODEL.clip)
    with pytest.warns(UserWarning, match=r"has no decoder that fits"):
        start = built(task(open_checkpoint(model.save_pretrained(tmp_path))))
    assert torch.equal(start.encoder.embed.weight, model.encoder.embed.weight)
    assert torch.equal(start.head.weight, built(task()).head.weight)


def test_another_target_is_a_warning(tmp_path):
    opened = open_checkpoint(pretrained().save_pretrained(tmp_path))
    with pytest.warns(UserWarning, match="normalise_target True, and is continued with False"):
        built(task(opened, normalise_target=False))


def test_an_encoder_that_does_not_fit_is_refused(tmp_path):
    model = VideoMAE(SIZES["tiny"], MODEL.clip).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"encoder\.embed\.weight: file \(96, 96\)"):
        built(task(open_checkpoint(model)))


def test_an_interrupted_continuation_ends_as_an_unbroken_one(tmp_path):
    opened = open_checkpoint(pretrained().save_pretrained(tmp_path / "model"))
    compute = Compute(tensorboard=False, checkpoint_every=2, workers=0)
    whole = train(task(opened), tmp_path / "whole", compute, progress=False).model.state_dict()

    class Interrupted(PretrainTask):
        steps = 0

        def loss(self, *arguments):
            Interrupted.steps += 1
            if Interrupted.steps == 4:
                raise KeyboardInterrupt
            return super().loss(*arguments)

    broken = task(opened)
    broken.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        train(broken, tmp_path / "broken", compute, progress=False)
    resumed = train(task(opened), tmp_path / "broken", compute, progress=False)
    assert resumed.steps_run == 2, "it went on after the saved step"
    assert all(torch.equal(value, whole[name]) for name, value in resumed.model.state_dict().items())


def test_the_weights_are_part_of_the_stage_name(smoke, tmp_path):
    recipe = build_recipe({**smoke, "arms": ["recipe"]})
    stages = []
    for number in range(2):
        torch.manual_seed(number)
        model = VideoMAE(SIZES["tiny"], ClipShape(8, 24, 2, 4))
        opened = opened_stage(recipe, open_checkpoint(model.save_pretrained(tmp_path / str(number))))
        stages.append(pretrain_stage(recipe, 0, opened))
    fresh = pretrain_stage(recipe, 0)
    assert len({stage.key for stage in (*stages, fresh)}) == 3
    assert fresh.inputs == ()
    assert pickle.loads(pickle.dumps(stages[0])) == stages[0], "it can be sent to another process"


@pytest.mark.slow
def test_the_command_continues_a_classifier(project, smoke, tmp_path, capsys):
    torch.manual_seed(0)
    where = VideoClassifier(SIZES["tiny"], ClipShape(8, 24, 2, 4), 5).save_pretrained(tmp_path / "model")
    words = ["pretrain", "smoke", "--encoder", str(where), "--seed", "0", "-p", "pretrain.steps", "2"]
    (project / "params").mkdir()
    source = Path(__file__).parents[2] / "params" / "smoke.yaml"
    (project / "params" / "smoke.yaml").write_text(source.read_text())
    with pytest.warns(UserWarning, match="no decoder"):
        assert main(words) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert VideoMAE.from_pretrained(folder).size == SIZES["tiny"]
    assert len(list((project / "runs").glob("opened-*"))) == 1
    assert "mask_token" in read_weights(folder / "model.safetensors")

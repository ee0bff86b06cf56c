"""`vmae-lab reconstruct`: a loop and a strip, with and without what is taken from the true patches."""

from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import torch
from made_videos import write_video
from PIL import Image
from pydantic import create_model

from vmae_lab import masking
from vmae_lab.cli import main
from vmae_lab.evaluation.predict import preprocess
from vmae_lab.lab.plots.examples import CONTRAST, rebuilt
from vmae_lab.masking import MASKS, MaskSettings
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.seeding import seeded

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)


def pretrained(normalise_target: bool = True) -> VideoMAE:
    with seeded(0, "pre-trained"):
        return VideoMAE(MODEL.dimensions, MODEL.clip, normalise_target, target_eps=0.01).eval()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a model and a video."""
    monkeypatch.chdir(tmp_path)
    pretrained().save_pretrained("model")
    write_video(Path("video.mp4"), 30)
    return tmp_path


def test_a_loop_and_a_strip_are_written(here, capsys):
    assert main(["reconstruct", "model", "video.mp4", "--stride", "2"]) == 0
    shown = capsys.readouterr().out
    assert "32 patches: the encoder sees 4, the decoder reconstructs 28" in shown
    assert "squared error of 28 hidden patches" in shown
    with Image.open("reconstruction.gif") as loop:
        assert (loop.n_frames, loop.info["loop"]) == (4, 0)
    with Image.open("reconstruction.png") as strip:
        assert strip.height > strip.width, "five rows of two time steps"


def test_a_video_file_plays_the_same(here):
    words = ["--mask", "random", "--ratio", "0.5", "--decoder-mask", "running_cell", "--out", "out/loop.mp4"]
    assert main(["reconstruct", "model", "video.mp4", *words]) == 0
    with av.open("out/loop.mp4") as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 16
    assert Path("out/loop.png").is_file()


def test_a_prediction_alone_takes_nothing_from_the_truth(here):
    """Two clips that differ in masked patches only have the same prediction; the other version differs."""
    model = pretrained()
    clip = preprocess("video.mp4", model, stride=2)[:1]
    mask = torch.arange(MODEL.clip.tokens)[None] % 16 > 3  # of each frame the first row of patches is visible
    other = clip.clone()
    other[..., 4:, :] = 255 - other[..., 4:, :] // 2
    one, two = (rebuilt(model, video, mask, standardized=True) for video in (clip, other))
    assert list(one) == ["original", "encoder sees", "patch means", "reconstruction", "prediction"]
    assert np.array_equal(one["prediction"], two["prediction"])
    assert not np.array_equal(one["reconstruction"], two["reconstruction"])
    assert np.array_equal(one["prediction"][:, :4], one["original"][:, :4]), "what the encoder sees is shown"
    with torch.no_grad():
        predicted, positions = model(clip, mask)
    first = predicted[0, 0].view(2, 4, 4, 3).numpy()  # the first patch of the second row
    assert positions[0, 0] == 4
    expected = np.round(255 * (0.5 + CONTRAST * first).clip(0, 1))
    assert np.array_equal(one["prediction"][:2, 4:8, :4], expected.astype(np.uint8))


def test_plain_pixels_have_one_version(here):
    frames = rebuilt(
        pretrained(False), preprocess("video.mp4", pretrained())[:1], torch.arange(32)[None] > 3, standardized=True
    )
    assert list(frames) == ["original", "encoder sees", "reconstruction"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classifier", "video.mp4"], "classifier has no decoder"),
        (["model", "missing.mp4"], "missing.mp4: there is no such file"),
        (["model", "taken.gif"], "it is not a regular file but a folder"),
        (["model", "video.mp4", "--ratio", "1"], "--ratio"),
        (["model", "video.mp4", "--ratio", "0.01"], "a tube mask on a 4x4 frame"),
    ],
)
def test_a_mistake_is_one_message(words, message, here, capsys):
    """test_predict_command.py has those that both commands report."""
    VideoClassifier(MODEL.dimensions, MODEL.clip, 3).save_pretrained("classifier")
    Path("taken.gif").mkdir()
    assert main(["reconstruct", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not Path("reconstruction.gif").exists()


@pytest.mark.parametrize("option", ["--mask", "--decoder-mask"])
def test_the_masks_are_those_of_masking(here, monkeypatch, option, capsys):
    """A mask that docs/extending.md adds can be used without a change of the command."""
    assert main(["reconstruct", "model", "video.mp4", option, "rows"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert all(word in message for word in (option, "no mask 'rows'", *MASKS))
    monkeypatch.setattr(masking, "MaskKind", Literal["tube", "rows"])
    monkeypatch.setitem(MASKS, "rows", MASKS["random"])
    changed = create_model("MaskSettings", __base__=MaskSettings, encoder=(str, "tube"), decoder=(str, "none"))
    monkeypatch.setattr(masking, "MaskSettings", changed)
    assert main(["reconstruct", "model", "video.mp4", option, "rows", "--ratio", "0.5"]) == 0

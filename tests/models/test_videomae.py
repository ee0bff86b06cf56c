"""The model's own promises, without reference tensors: what is seen, what is embedded, gradients, sizes, errors."""

import pytest
import torch

from vmae_lab.masking import MaskSettings, draw_masks, loss_positions
from vmae_lab.models.checkpoints import CheckpointError, load_weights, read_weights
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE, reconstruction_loss

CLIP = ClipShape(frames=8, side=24, patch=4)
GRID = CLIP.grid


@pytest.fixture
def model() -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(SIZES["tiny"], CLIP)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 8, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def masks(**settings) -> tuple[torch.Tensor, torch.Tensor]:
    generators = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    return draw_masks(MaskSettings(encoder_ratio=0.75, **settings), GRID, 2, *generators)


def test_masked_pixels_do_not_reach_the_prediction(model, video):
    encoder_mask, decoder_mask = masks()
    prediction, _ = model(video, encoder_mask, decoder_mask)
    hidden = encoder_mask[0].view(GRID).repeat_interleave(2, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    changed = video.clone()
    changed[0, :, hidden] = 255 - changed[0, :, hidden]
    torch.testing.assert_close(model(changed, encoder_mask, decoder_mask)[0], prediction, atol=0, rtol=0)


def test_only_decoded_positions_are_predicted(model, video):
    encoder_mask, decoder_mask = masks(decoder="random", decoder_ratio=0.5)
    prediction, decoded = model(video, encoder_mask, decoder_mask)
    assert prediction.shape == (2, 72, CLIP.cube_values)
    assert all(
        set(row.tolist()) == set((~mask).nonzero().flatten().tolist()) for row, mask in zip(decoded, decoder_mask, strict=True)
    )


def test_the_loss_pools_over_the_batch_not_over_clips(model, video):
    encoder_mask, decoder_mask = masks(decoder="random", decoder_ratio=0.5)
    prediction, decoded = model(video, encoder_mask, decoder_mask)
    target, counted = model.target(video, decoded), loss_positions(encoder_mask, decoded)
    errors = (prediction - target).square().mean(-1)[counted]
    torch.testing.assert_close(reconstruction_loss(prediction, target, counted), errors.mean())


def test_the_two_losses_differ_in_what_the_encoder_saw():
    encoder_mask, decoder_mask = masks()
    decoded = (~decoder_mask).nonzero()[:, 1].view(2, -1)
    seen_and_decoded = (~encoder_mask & ~decoder_mask).sum()
    everything, invisible = (loss_positions(encoder_mask, decoded, on).sum() for on in ("all_decoded", "invisible"))
    assert everything - invisible == seen_and_decoded > 0


def test_every_parameter_gets_a_gradient(model, video):
    prediction, decoded = model(video, *masks())
    reconstruction_loss(prediction, model.target(video, decoded), torch.ones_like(decoded, dtype=torch.bool)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("readout", ["mean", "flat", "attentive"])
def test_classifier_readouts(video, readout):
    model = VideoClassifier(SIZES["tiny"], CLIP, classes=8, readout=readout, drop_path=0.1)
    assert model(video).shape == (2, 8)


def test_wrong_clips_and_shapes_are_named(model, video):
    with pytest.raises(ValueError, match=r"takes clips of \(B, 3, 8, 24, 24\); got"):
        model(video[:, :, :4], *masks())
    with pytest.raises(ValueError, match="does not split into cubes"):
        ModelSettings(size="tiny", frames=8, side=30, patch=4)
    with pytest.raises(ValueError, match="no model size 'tyni'; sizes are micro, tiny, mini, small"):
        ModelSettings(size="tyni")


def test_a_checkpoint_that_does_not_fit_is_listed_and_a_broken_one_named(model, tmp_path):
    state = {**model.state_dict(), "extra": torch.zeros(1)}
    del state["mask_token"]
    state["head.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 missing: mask_token.*1 unexpected: extra.*head.bias: file \(3,\)"):
        load_weights(model, state, "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)

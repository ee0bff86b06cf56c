"""VideoMAE without reference tensors: visibility, targets, losses, gradients, sizes, errors."""

import numpy as np
import pytest
import torch

from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.checkpoints import CheckpointError, load_weights, read_weights
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE, reconstruction_loss
from vmae_lab.models.vit import patchify, sincos_positions

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


def test_positions_instead_of_masks(model, video):
    """Training passes positions, which loader workers have computed."""
    encoder_mask, decoder_mask = masks()
    visible, decoded = visible_index(encoder_mask), visible_index(decoder_mask)
    expected, positions = model(video, encoder_mask, decoder_mask)
    prediction, same = model(video, visible, decoded)
    assert torch.equal(prediction, expected)
    assert torch.equal(same, positions)
    with pytest.raises(ValueError, match="decoded"):
        model(video, visible)


def test_only_decoded_positions_are_predicted(model, video):
    encoder_mask, decoder_mask = masks(decoder="random", decoder_ratio=0.5)
    prediction, decoded = model(video, encoder_mask, decoder_mask)
    assert prediction.shape == (2, 72, CLIP.patch_values)
    assert all(
        set(row.tolist()) == set((~mask).nonzero().flatten().tolist()) for row, mask in zip(decoded, decoder_mask, strict=True)
    )


def test_the_loss_averages_over_all_tokens_of_the_batch(model, video):
    encoder_mask, decoder_mask = masks(decoder="random", decoder_ratio=0.5)
    prediction, decoded = model(video, encoder_mask, decoder_mask)
    target, counted = model.target(video, decoded), loss_positions(encoder_mask, decoded)
    errors = (prediction - target).square().mean(-1)[counted]
    torch.testing.assert_close(reconstruction_loss(prediction, target, counted), errors.mean())


def test_a_target_by_hand(video):
    """The patch at rows 4 to 7 and columns 8 to 11 of frames 2 and 3, standardized per channel over its 32 pixels."""
    clip = ClipShape(frames=8, side=24, patch=4)
    position = 1 * 36 + 1 * 6 + 2
    patch = video[1, :, 2:4, 4:8, 8:12].numpy().astype(np.float64) / 255
    mean, deviation = patch.mean((1, 2, 3), keepdims=True), patch.std((1, 2, 3), ddof=1, keepdims=True)
    for normalise, expected in ((True, (patch - mean) / (deviation + 0.5)), (False, patch)):
        model = VideoMAE(SIZES["tiny"], clip, normalise, target_eps=0.5)
        target = model.target(video, torch.tensor([[0], [position]]))
        by_hand = np.moveaxis(expected, 0, -1).reshape(-1)  # time, row, column, channel
        assert target[1, 0].numpy() == pytest.approx(by_hand, abs=1e-5)


def test_raw_and_normalized_pixels_give_the_same_output(model, video):
    """Normalization is by ImageNet mean and standard deviation per channel."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = (video / 255 - mean) / deviation
    visible = torch.arange(20).expand(2, -1)
    torch.testing.assert_close(model.encoder(video, visible), model.encoder(normalised, visible), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.target(video, visible), model.target(normalised, visible), atol=1e-4, rtol=0)


@pytest.mark.parametrize("patch", [2, 4, 8, 14, 16])
@pytest.mark.parametrize("layout", ["contiguous", "part of a batch", "channels last", "odd offset", "float"])
def test_patchify_by_hand(patch, layout):
    clip = ClipShape(frames=4, side=3 * patch, patch=patch)
    shape = (2, 3, 4, clip.side, clip.side)
    whole = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = {
        "contiguous": whole,
        "part of a batch": torch.cat([whole, whole]).chunk(2)[1],
        "channels last": whole.movedim(1, -1).contiguous().movedim(-1, 1),
        "odd offset": torch.cat([whole.new_zeros(1), whole.flatten()])[1:].view(shape),
        "float": whole.float(),
    }[layout]
    found = patchify(video, clip)
    assert found.dtype == video.dtype
    expected = [
        whole[:, :, 2 * t : 2 * t + 2, patch * h : patch * (h + 1), patch * w : patch * (w + 1)].flatten(1)
        for t in range(2) for h in range(3) for w in range(3)
    ]  # fmt: skip
    assert torch.equal(found.to(torch.uint8), torch.stack(expected, 1))


def test_positions_by_hand():
    """Width 4: dimensions 0 and 1 are sine and cosine of the token index, 2 and 3 of the index / 100."""
    tokens = np.array([0, 1, 50])
    by_hand = np.stack([np.sin(tokens), np.cos(tokens), np.sin(tokens / 100), np.cos(tokens / 100)], 1)
    assert sincos_positions(51, 4)[tokens].numpy() == pytest.approx(by_hand, abs=1e-6)


def test_outputs_are_equivariant_to_token_order(model, video):
    """A permutation of the visible or of the decoded positions permutes the outputs."""
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    visible, decoded = torch.arange(0, 90, 3).expand(2, -1), torch.arange(1, 91, 3).expand(2, -1)
    encoded = model.encoder(video, visible)
    torch.testing.assert_close(model.encoder(video, visible[:, order]), encoded[:, order], atol=1e-5, rtol=1e-4)
    prediction = model.forward_decoder(encoded, visible, decoded)
    for again in (
        model.forward_decoder(encoded, visible, decoded[:, order]),
        model.forward_decoder(encoded[:, order], visible[:, order], decoded)[:, order],
    ):
        torch.testing.assert_close(again, prediction[:, order], atol=1e-5, rtol=1e-4)
    assert (prediction[:, 1:] - prediction[:, :-1]).abs().amax(2).min() > 1e-3, "each position has its own prediction"


def test_predictions_come_from_mask_tokens(model, video):
    """A decoder without blocks depends only on mask token and position, not on visible tokens."""
    model.decoder.blocks = torch.nn.ModuleList()
    decoded = torch.arange(30, 40).expand(2, -1)
    prediction = model.forward_decoder(
        model.encoder(video, torch.arange(20).expand(2, -1)), torch.arange(20).expand(2, -1), decoded
    )
    expected = model.head(model.norm(model.mask_token + sincos_positions(216, 48)[30:40]))
    torch.testing.assert_close(prediction, expected.expand(2, -1, -1))


def test_the_loss_by_hand():
    """Two clips of two tokens of two values. One token of the first clip and both of the second are counted."""
    prediction = torch.tensor([[[1.0, 3.0], [9.0, 9.0]], [[0.0, 2.0], [4.0, 0.0]]])
    counted = torch.tensor([[True, False], [True, True]])
    assert reconstruction_loss(prediction, torch.zeros(2, 2, 2), counted).item() == pytest.approx((5 + 2 + 8) / 3)


def test_the_two_losses_differ_by_the_visible_decoded_tokens():
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


def test_wrong_clips_and_sizes_are_refused(model, video):
    with pytest.raises(ValueError, match=r"\(B, 3, 8, 24, 24\); got"):
        model(video[:, :, :4], *masks())
    with pytest.raises(ValueError, match="cannot be split into"):
        ModelSettings(size="tiny", frames=8, side=30, patch=4)
    with pytest.raises(ValueError, match="'tyni'; sizes are micro, tiny, mini, small"):
        ModelSettings(size="tyni")


def test_errors_of_load_weights_and_read_weights(model, tmp_path):
    state = {**model.state_dict(), "extra": torch.zeros(1)}
    del state["mask_token"]
    state["head.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 missing: mask_token.*1 unexpected: extra.*head.bias: file \(3,\)"):
        load_weights(model, state, "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)

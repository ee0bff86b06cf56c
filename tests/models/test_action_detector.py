"""ActionDetector: feature maps for frames of any size, and scores of boxes."""

import pytest
import torch
from einops import rearrange

from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import CheckpointError
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import VideoEncoder, interpolated_positions, sincos_positions
from vmae_lab.training.optim import parameter_groups

CLIP = ClipShape(frames=4, side=24, patch=4)


@pytest.fixture
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(SIZES["micro"], CLIP).eval()


@pytest.fixture
def detector() -> ActionDetector:
    torch.manual_seed(0)
    return ActionDetector(SIZES["micro"], CLIP, 5, init_scale=1.0).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_maps_at_the_trained_size_equal_the_tokens(encoder):
    video = noise(2, 3, 4, 24, 24)
    assert torch.equal(rearrange(encoder.maps(video), "b d t h w -> b (t h w) d"), encoder(video))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(24, 40), (48, 32), (8, 8)])
def test_maps_of_other_sizes_use_interpolated_positions(encoder, height, width):
    video = noise(1, 3, 4, height, width)
    grid = (2, height // 4, width // 4)
    maps = encoder.maps(video)
    assert maps.shape == (1, 64, *grid)
    positions = torch.nn.functional.interpolate(
        encoder.positions.T.reshape(64, 2, 6, 6).transpose(0, 1), grid[1:], mode="bicubic", align_corners=False
    )
    patches = rearrange(video, "b c (t k) (h p) (w q) -> b (t h w) (c k p q)", k=2, p=4, q=4)
    tokens = encoder.embed(encoder.pixels.normalised(patches)) + rearrange(positions, "t d h w -> (t h w) d")
    expected = rearrange(encoder.trunk(tokens), "b (t h w) d -> b d t h w", t=grid[0], h=grid[1])
    assert torch.allclose(maps, expected, atol=1e-5), "only the order of float32 sums differs"


def test_interpolation_to_the_same_grid_is_the_identity():
    positions = sincos_positions(72, 16)
    assert interpolated_positions(positions, (2, 6, 6), (2, 6, 6)) is positions
    wider = interpolated_positions(positions, (2, 6, 6), (2, 6, 12)).reshape(2, 6, 12, 16)
    # In the middle of a row, low frequencies are nearly linear, so that a point between two others is their mean.
    own = positions.reshape(2, 6, 6, 16)
    assert torch.allclose(wider[:, :, 5:7, 8:].mean(2), own[:, :, 2:4, 8:].mean(2), atol=1e-3)


@pytest.mark.parametrize("shape", [(4, 24, 26), (4, 22, 24), (6, 24, 24)])
def test_maps_refuse_clips_that_patches_do_not_divide(encoder, shape):
    with pytest.raises(
        ValueError, match=r"clips of 4 frames .* multiples of 4 pixels; got {} frames of {} x {}".format(*shape)
    ):
        encoder.maps(noise(1, 3, *shape))


def test_a_box_is_scored_by_the_maximum_inside_it(detector):
    """One channel of the map is nonzero in one cell, row 2 and column 4: x from 16 to 20 and y from 8 to 12 pixels."""
    maps = torch.zeros(1, 64, 2, 6, 6)
    maps[0, 7, :, 2, 4] = torch.tensor([1.0, 3.0])  # mean over time: 2
    detector.encoder.maps = lambda video: maps
    with torch.no_grad():
        detector.head.weight.zero_()
        detector.head.weight[:, 7] = torch.arange(5.0)
        detector.head.bias.fill_(1.0)
        boxes = torch.tensor([[[0.0, 0.0, 24.0, 24.0], [0.0, 0.0, 8.0, 8.0], [12.0, 4.0, 24.0, 20.0]]])
        scores = detector(noise(1, 3, 4, 24, 24), boxes)
    whole, away, around = scores[0]
    assert torch.equal(away, torch.ones(5)), "only the bias"
    for box in (whole, around):
        heights = (box - 1) / torch.arange(5.0).clamp(min=1)
        assert torch.allclose(heights[1:], heights[1].expand(4))
        assert 0.5 < heights[1] <= 2.0, "interpolated values are at most the maximum"
    assert around[1] >= whole[1], "smaller bins sample closer to the cell"


@torch.no_grad()
def test_roi_align_by_hand(detector):
    """The values of the maps are their columns and rows. The box has 7 x 7 cells, so that each bin is one cell.

    RoIAlign is unaligned, as in the official code: pixel 8 is column 2, and the middle of the last bin is 6.5 further.
    """
    index = torch.arange(16.0)
    maps = torch.zeros(1, 64, 2, 16, 16)
    maps[:, 7], maps[:, 8] = index, index[:, None]
    detector.encoder.maps = lambda video: maps
    detector.head.weight.zero_()
    detector.head.bias.zero_()
    detector.head.weight[0, 7], detector.head.weight[1, 8] = 1, 1
    scores = detector(noise(1, 3, 4, 64, 64), torch.tensor([[[8.0, 4.0, 36.0, 32.0]]]))
    assert scores[0, 0, :2].tolist() == pytest.approx([2 + 6.5, 1 + 6.5])


@torch.no_grad()
def test_boxes_are_scored_independently(detector):
    video, boxes = noise(2, 3, 4, 24, 32), torch.tensor([[[0.0, 0, 10, 20]], [[5.0, 5, 30, 20]]])
    alone = detector(video, boxes)
    padded = torch.cat([boxes, torch.zeros(2, 3, 4)], 1)
    assert torch.allclose(detector(video, padded)[:, :1], alone, atol=1e-6)
    assert torch.allclose(detector(video[1:], boxes[1:])[0], alone[1], atol=1e-5)


@torch.no_grad()
def test_a_loaded_detector_gives_the_same_scores(detector, tmp_path):
    loaded = ActionDetector.from_pretrained(detector.save_pretrained(tmp_path, story="none"))
    video, boxes = noise(1, 3, 4, 24, 32), torch.tensor([[[0.0, 0, 10, 20]]])
    assert torch.equal(loaded(video, boxes), detector(video, boxes))
    card = (tmp_path / "README.md").read_text()
    assert "# Action detector" in card
    assert "5 classes" in card
    assert "from vmae_lab.models.action_detector import ActionDetector" in card


@pytest.mark.parametrize("layout", ["transformers", "official", "remote_code"])
def test_other_layouts_do_not_support_a_detector(detector, layout, tmp_path):
    with pytest.raises(CheckpointError, match=f"'{layout}'.*'vmae_lab'"):
        detector.save_pretrained(tmp_path, layout)


def test_loading_another_kind_of_model_fails(tmp_path):
    VideoMAE(SIZES["micro"], CLIP).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"VideoMAE.*vmae-lab detect"):
        ActionDetector.from_pretrained(tmp_path)


def test_load_encoder_with_and_without_final_norm(detector):
    other = VideoEncoder(SIZES["micro"], CLIP).state_dict()
    fresh = detector.encoder.trunk.norm.weight.detach().clone()
    other["trunk.norm.weight"] = other["trunk.norm.weight"] + 1
    detector.load_encoder({key: value for key, value in other.items() if not key.startswith("trunk.norm.")})
    assert torch.equal(detector.encoder.embed.weight, other["embed.weight"])
    assert torch.equal(detector.encoder.trunk.norm.weight, fresh)
    detector.load_encoder(other)
    assert torch.equal(detector.encoder.trunk.norm.weight, other["trunk.norm.weight"])
    with pytest.raises(CheckpointError, match="the pre-trained encoder does not fit this model"):
        detector.load_encoder({key: value for key, value in other.items() if key != "embed.bias"})


def test_layer_decay_counts_from_the_head(detector):
    scales = {}
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    for group in parameter_groups(detector, 0.05, 0.5):
        scales |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    assert set(scales) == set(names.values())
    assert (scales["head.weight"], scales["encoder.trunk.norm.weight"]) == (1.0, 1.0)
    assert [scales[f"encoder.trunk.blocks.{block}.mlp.fc1.weight"] for block in range(3)] == [0.125, 0.25, 0.5]
    assert scales["encoder.embed.weight"] == 0.0625


def test_a_config_without_classes_is_refused(detector, tmp_path):
    config = detector.save_pretrained(tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"classes": 5', '"classes": null'))
    with pytest.raises(CheckpointError, match=r"config\.json.*number of classes"):
        ActionDetector.from_pretrained(tmp_path)

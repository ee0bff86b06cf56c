"""The encoder on frames of any size, and scores of boxes by what lies in them."""

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
def test_maps_at_the_encoders_own_size_are_its_tokens(encoder):
    video = noise(2, 3, 4, 24, 24)
    assert torch.equal(rearrange(encoder.maps(video), "b d t h w -> b (t h w) d"), encoder(video))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(24, 40), (48, 32), (8, 8)])
def test_maps_of_other_sizes_are_those_of_an_encoder_with_interpolated_positions(encoder, height, width):
    video = noise(1, 3, 4, height, width)
    grid = (2, height // 4, width // 4)
    maps = encoder.maps(video)
    assert maps.shape == (1, 64, *grid)
    places = torch.nn.functional.interpolate(
        encoder.positions.T.reshape(64, 2, 6, 6).transpose(0, 1), grid[1:], mode="bicubic", align_corners=False
    )
    cubes = rearrange(video, "b c (t k) (h p) (w q) -> b (t h w) (c k p q)", k=2, p=4, q=4)
    tokens = encoder.embed(encoder.pixels.normalised(cubes)) + rearrange(places, "t d h w -> (t h w) d")
    expected = rearrange(encoder.trunk(tokens), "b (t h w) d -> b d t h w", t=grid[0], h=grid[1])
    assert torch.allclose(maps, expected, atol=1e-5), "float32 sums in another order"


def test_positions_of_the_same_grid_are_left_as_they_are():
    positions = sincos_positions(72, 16)
    assert interpolated_positions(positions, (2, 6, 6), 6, 6) is positions
    wider = interpolated_positions(positions, (2, 6, 6), 6, 12).reshape(2, 6, 12, 16)
    # In the middle of a row the slow waves are straight enough for a point between two to be their mean.
    own = positions.reshape(2, 6, 6, 16)
    assert torch.allclose(wider[:, :, 5:7, 8:].mean(2), own[:, :, 2:4, 8:].mean(2), atol=1e-3)


@pytest.mark.parametrize("shape", [(4, 24, 26), (4, 22, 24), (6, 24, 24)])
def test_clips_that_do_not_split_into_cubes_are_refused(encoder, shape):
    with pytest.raises(
        ValueError, match=r"clips of 4 frames whose sides are multiples of 4 pixels; got {} frames of {} x {}".format(*shape)
    ):
        encoder.maps(noise(1, 3, *shape))


def test_a_box_is_scored_by_the_maximum_of_what_lies_in_it(detector):
    """One channel of the map is hot in one cell, row 2 and column 4: pixels 16 to 20 and 8 to 12."""
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
    assert torch.equal(away, torch.ones(5)), "nothing hot in it: the bias"
    for box in (whole, around):
        heights = (box - 1) / torch.arange(5.0).clamp(min=1)
        assert torch.allclose(heights[1:], heights[1].expand(4))
        assert 0.5 < heights[1] <= 2.0, "interpolated between cells, the maximum is at most the hot one"
    assert around[1] >= whole[1], "smaller bins lie closer to it"


@torch.no_grad()
def test_a_box_is_read_where_it_lies_by_hand(detector):
    """Maps whose values are their columns and rows; a box of seven cells by seven, so that a bin is one, read in its middle.

    Unaligned, as in the reference: the corner at pixel 8 is column 2 itself, and the last bin's middle 6.5 further.
    """
    places = torch.arange(16.0)
    maps = torch.zeros(1, 64, 2, 16, 16)
    maps[:, 7], maps[:, 8] = places, places[:, None]
    detector.encoder.maps = lambda video: maps
    detector.head.weight.zero_()
    detector.head.bias.zero_()
    detector.head.weight[0, 7], detector.head.weight[1, 8] = 1, 1
    scores = detector(noise(1, 3, 4, 64, 64), torch.tensor([[[8.0, 4.0, 36.0, 32.0]]]))
    assert scores[0, 0, :2].tolist() == pytest.approx([2 + 6.5, 1 + 6.5])


@torch.no_grad()
def test_more_boxes_or_empty_ones_change_no_other(detector):
    video, boxes = noise(2, 3, 4, 24, 32), torch.tensor([[[0.0, 0, 10, 20]], [[5.0, 5, 30, 20]]])
    alone = detector(video, boxes)
    padded = torch.cat([boxes, torch.zeros(2, 3, 4)], 1)
    assert torch.allclose(detector(video, padded)[:, :1], alone, atol=1e-6)
    assert torch.allclose(detector(video[1:], boxes[1:])[0], alone[1], atol=1e-5)


@torch.no_grad()
def test_a_saved_detector_says_the_same(detector, tmp_path):
    again = ActionDetector.from_pretrained(detector.save_pretrained(tmp_path, story="none"))
    video, boxes = noise(1, 3, 4, 24, 32), torch.tensor([[[0.0, 0, 10, 20]]])
    assert torch.equal(again(video, boxes), detector(video, boxes))
    card = (tmp_path / "README.md").read_text()
    assert "# Action detector" in card
    assert "5 classes" in card
    assert "from vmae_lab.models.action_detector import ActionDetector" in card


@pytest.mark.parametrize("layout", ["transformers", "official", "remote_code"])
def test_no_other_layout_holds_a_detector(detector, layout, tmp_path):
    with pytest.raises(CheckpointError, match=f"'{layout}'.*'vmae_lab'"):
        detector.save_pretrained(tmp_path, layout)


def test_another_model_is_not_taken_for_a_detector(tmp_path):
    VideoMAE(SIZES["micro"], CLIP).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"VideoMAE.*vmae-lab detect"):
        ActionDetector.from_pretrained(tmp_path)


def test_an_encoder_with_or_without_its_final_norm_is_taken_up(detector):
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
    with pytest.raises(CheckpointError, match=r"number of classes .*config\.json"):
        ActionDetector.from_pretrained(tmp_path)

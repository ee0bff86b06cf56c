"""Clips of other heights than widths, and positions at shapes other than the trained one."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from random_weights import randomized
from torch.nn import functional

import vmae_lab.models.registry  # noqa: F401  (registers the encoders)
from vmae_lab.evaluation.features import FeatureError, FeatureSettings, _check_settings, open_encoder
from vmae_lab.evaluation.predict import open_classifier
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.stages import detect_stage, finetune_stage, opened_stage, pretrain_stage
from vmae_lab.lab.stages.stage import plain_section
from vmae_lab.masking import MaskSettings, draw_masks
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import CheckpointError, open_checkpoint
from vmae_lab.models.checkpoints.formats import official_arguments
from vmae_lab.models.checkpoints.load import read_file
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.flops import TokenCounts
from vmae_lab.models.sizes import ClipShape, ModelSettings, Size
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import VideoEncoder, interpolated_positions, positions_at, sincos_positions
from vmae_lab.training.tasks.finetune import FinetuneTask
from vmae_lab.training.tasks.pretrain import start_from
from vmae_lab.utils.shapes import parse_side, read_side

OFFICIAL = Size(24, 2, 2, 64, 16, 1, 2, 48, patch=14, layer_scale=0.1)  # "official style"
WIDE = ClipShape(frames=12, side=(28, 56), patch=14)  # 6 x 2 x 4 tokens
SMALL = Size(32, 1, 2, 64, 24, 1, 2, 48, patch=4)
TRAINED = ClipShape(frames=4, side=16, patch=4)  # 2 x 4 x 4 tokens
PAIRS = [((2, 4, 4), (2, 6, 8)), ((2, 4, 4), (5, 4, 4)), ((4, 6, 3), (2, 3, 5)), ((1, 4, 4), (3, 2, 8))]


def video(clip: ClipShape, count: int = 2) -> torch.Tensor:
    shape = (count, 3, clip.frames, clip.height, clip.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_a_square_stays_one_number():
    assert [read_side(value) for value in (24, "24", [24, 24], (24, 24), [24, 32])] == [24, 24, 24, 24, (24, 32)]
    square, wide = (ModelSettings(size="micro", side=side) for side in ([32, 32], [32, 48]))
    assert plain_section(square) == plain_section(ModelSettings(size="micro", side=32))
    assert plain_section(square).keys() == {"size", "frames", "side", "tubelet", "patch"}
    assert plain_section(wide)["side"] == [32, 48]
    assert square.clip == ClipShape(16, 32, 2, 8) == ClipShape(16, (32, 32), 2, 8)
    assert (wide.clip.height, wide.clip.width, wide.clip.grid, wide.clip.tokens) == (32, 48, (8, 4, 6), 192)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ([24], r"model.side: .*\[height, width\].*\[24\]"),
        ([24, 32, 40], r"model.side: .*\[height, width\]"),
        ([24, -32], r"model.side: .*at least 1"),
        (-24, r"model.side: .*at least 1"),
        (0, r"model.side: .*at least 1"),
        ("wide", r"model.side: .*'wide'"),
        ([24, 30], r"model: a clip of 8 frames x 24 x 30 pixels cannot be split into patches of 2 frames x 4 x 4 pixels"),
    ],
)
def test_a_wrong_side_is_one_message(smoke, side, message):
    with pytest.raises(RecipeError, match=message) as caught:
        build_recipe({**smoke, "arms": ["none"], "override": {"model.side": side}})
    assert "\n" not in str(caught.value)


def test_sides_on_the_command_line(smoke):
    assert [parse_side(text) for text in (None, "24", "24x32", "[24, 32]", "24,24")] == [None, 24, (24, 32), (24, 32), 24]
    for text in ("wide", "24x", "24x32x40", "-24", ""):
        with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
            parse_side(text)
    recipe = build_recipe({**smoke, "arms": ["none"], "override": {"model.side": "[24, 32]"}})
    assert recipe.model.side == (24, 32)
    assert build_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_masks_and_costs_follow_the_grid():
    clip = ClipShape(frames=8, side=(24, 32), patch=4)
    counts = TokenCounts.of(MaskSettings(encoder_ratio=0.75), clip)
    assert (counts.tokens, counts.visible, counts.decoded) == (192, 48, 96)
    generators = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    encoder_mask, _ = draw_masks(MaskSettings(encoder_ratio=0.75), clip.grid, 3, *generators)
    assert (encoder_mask.unflatten(1, clip.grid) == encoder_mask.unflatten(1, clip.grid)[:, :1]).all(), "tubes"


def test_timm_creates_it():
    encoder = timm.create_model("vmae_micro", num_frames=4, img_size=(16, 24))
    assert encoder.clip.grid == (2, 2, 3)


# --- Positions --------------------------------------------------------------------------------------------------------


def weights(old: int, new: int, cubic: bool) -> torch.Tensor:
    """Interpolation as a matrix, float64 `(new, old)`: half-pixel centers, edges repeated; Keys' kernel with a = -0.75."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        center = (row + 0.5) * old / new - 0.5
        if not cubic:
            center = max(center, 0.0)
        first = int(torch.tensor(center).floor())
        for column in range(first - 1, first + 3) if cubic else (first, first + 1):
            x = abs(center - column)
            if not cubic:
                weight = 1 - x
            elif x <= 1:
                weight = 1.25 * x**3 - 2.25 * x**2 + 1
            else:
                weight = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(column, 0), old - 1)] += weight
    return matrix


@pytest.mark.parametrize(("trained", "grid"), PAIRS)
def test_interpolation_equals_a_float64_reference(trained, grid):
    table = sincos_positions(trained[0] * trained[1] * trained[2], 32)
    maps = table.double().unflatten(0, trained)
    for axis, (old, new) in enumerate(zip(trained, grid, strict=True)):
        maps = torch.tensordot(weights(old, new, cubic=axis > 0), maps.movedim(axis, 0), 1).movedim(0, axis)
    found = interpolated_positions(table, trained, grid)
    print(f"largest difference {(found - maps.flatten(0, 2)).abs().max():.1e}")
    torch.testing.assert_close(found.double(), maps.flatten(0, 2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("rule", ["interpolate", "recompute"])
def test_both_rules_are_the_identity_at_the_trained_shape(rule):
    """Also after a detour over another shape."""
    other = TRAINED.reshaped(8, (16, 24), "interpolate")
    assert other.positions_from == (2, 4, 4)
    for clip in (replace(TRAINED, positions=rule), TRAINED.reshaped(4, 16, rule), other.reshaped(4, 16, rule)):
        assert clip.positions_from is None
        assert torch.equal(positions_at(clip, 32), sincos_positions(32, 32))


@pytest.mark.parametrize("rule", ["interpolate", "recompute"])
@pytest.mark.parametrize("grid", [(2, 6, 8), (2, 4, 5)])
def test_classifier_detector_and_features_have_the_same_positions(tmp_path, rule, grid):
    side = (4 * grid[1], 4 * grid[2])
    expected = sincos_positions(2 * grid[1] * grid[2], 32)
    if rule == "interpolate":
        expected = interpolated_positions(sincos_positions(32, 32), (2, 4, 4), grid)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder = randomized(VideoMAE(SMALL, TRAINED)).save_pretrained(tmp_path / "pretrained")
        classifier = randomized(VideoClassifier(SMALL, TRAINED, 3)).save_pretrained(tmp_path / "classifier")
    loaded = VideoMAE.from_pretrained(folder, side=side, positions=rule)
    assert torch.equal(loaded.encoder.positions, expected)
    decoder = loaded.positions
    assert decoder.shape == (2 * grid[1] * grid[2], 24)
    assert torch.equal(decoder, positions_at(loaded.clip, 24))
    assert torch.equal(open_encoder(folder, None, side, "cpu", rule)[0].positions, expected)
    assert torch.equal(open_classifier(classifier, side=side, positions=rule).encoder.positions, expected)
    detector = ActionDetector(SMALL, replace(TRAINED, positions=rule), 3)
    assert torch.equal(detector.encoder._positions_at(grid), expected)
    wide = VideoEncoder(SMALL, TRAINED.reshaped(None, side, rule))  # trained elsewhere, and applied to frames of a third size
    assert torch.equal(wide._positions_at((2, 4, 4)), sincos_positions(32, 32))


def test_interpolate_is_the_default_and_equals_the_maps_of_the_detector(tmp_path):
    """The tokens of a reshaped encoder are the maps of the encoder with its own shape."""
    folder = randomized(VideoMAE(SMALL, TRAINED)).save_pretrained(tmp_path)
    own, reshaped = VideoMAE.from_pretrained(folder), VideoMAE.from_pretrained(folder, side=(24, 32))
    pixels = video(reshaped.clip)
    maps = own.encoder.maps(pixels)
    assert torch.equal(reshaped.encoder(pixels), maps.flatten(2).transpose(1, 2))
    assert torch.equal(reshaped.encoder.maps(pixels), maps)


def test_an_interpolated_model_is_saved_with_its_positions(tmp_path):
    model = randomized(VideoClassifier(SMALL, TRAINED, 3), k_biases=False)
    folder = model.save_pretrained(tmp_path / "trained")
    assert json.loads((folder / "config.json").read_text())["clip"] == {
        "frames": 4, "side": 16, "tubelet": 2, "patch": 4, "channels": 3
    }  # fmt: skip
    wide = VideoClassifier.from_pretrained(folder, side=(16, 24))
    back = VideoClassifier.from_pretrained(wide.save_pretrained(tmp_path / "wide"))
    assert torch.equal(back(video(wide.clip)), wide(video(wide.clip)))
    assert back.config == wide.config
    third = VideoClassifier.from_pretrained(tmp_path / "wide", frames=8, side=24)
    assert torch.equal(third.encoder.positions, VideoClassifier.from_pretrained(folder, frames=8, side=24).encoder.positions)
    for layout in ("official", "transformers", "remote_code"):
        with pytest.raises(CheckpointError, match=r"interpolated positions.*recompute"):
            wide.save_pretrained(tmp_path / layout, layout)
        numbered = VideoClassifier.from_pretrained(folder, side=(16, 24), positions="recompute")
        again = VideoClassifier.from_pretrained(numbered.save_pretrained(tmp_path / layout, layout), size=SMALL)
        assert torch.equal(again(video(wide.clip)), numbered(video(wide.clip)))


def test_features_of_other_positions_are_not_mixed(tmp_path):
    encoders = (VideoEncoder(SMALL, TRAINED.reshaped(None, (16, 24), rule)) for rule in ("interpolate", "recompute"))
    first, second = encoders
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        _check_settings(tmp_path, first, None, FeatureSettings(), None, False, False)
    with pytest.raises(FeatureError, match="clip"):
        _check_settings(tmp_path, second, None, FeatureSettings(), None, False, False)


def test_positions_of_an_opened_checkpoint_reach_all_its_stages(smoke, tmp_path):
    recipe = build_recipe(
        {**smoke, "arms": ["none"], "override": {"detect.side": [24, 28], "detect.augment.short_side": [28, 28]}}
    )
    other = recipe.with_overrides({"model.side": [24, 32]})
    numbered = other.with_overrides({"model.positions": "recompute"})
    model = randomized(VideoMAE(recipe.model.dimensions, recipe.model.clip))
    checkpoint = open_checkpoint(model.save_pretrained(tmp_path))
    same, interpolated, recomputed = (opened_stage(part, checkpoint) for part in (recipe, other, numbered))
    assert "positions_from" not in same.settings["model"]
    assert interpolated.settings["model"]["positions_from"] == [4, 6, 6]
    assert "positions_from" not in recomputed.settings["model"]
    assert len({same.key, interpolated.key, recomputed.key}) == 3
    expected = positions_at(interpolated.model.clip, 96)
    for stage in (finetune_stage(other, interpolated, 0), pretrain_stage(other, 0, interpolated)):
        assert stage.model.positions_from == (4, 6, 6)
        assert torch.equal(VideoEncoder(stage.model.dimensions, stage.model.clip).positions, expected)
    assert finetune_stage(other, pretrain_stage(other, 0), 0).model.positions_from is None
    assert detect_stage(other, interpolated, 0).model.positions_from == (4, 6, 6)
    task = FinetuneTask(interpolated.model, recipe.evaluate.finetune, recipe.data, None, [0], None, seed=0)
    assert torch.equal(task.build().encoder.positions, expected)
    continued = VideoMAE(interpolated.model.dimensions, interpolated.model.clip)
    start_from(continued, checkpoint)
    loaded = VideoMAE.from_pretrained(tmp_path, side=(24, 32))
    mask = torch.arange(continued.clip.tokens).expand(2, -1) % 4 > 0
    pixels = video(continued.clip)
    assert torch.equal(continued(pixels, mask)[0], loaded(pixels, mask)[0])


# --- Files ------------------------------------------------------------------------------------------------------------


def official_positions(count: int, dim: int) -> torch.Tensor:
    """The official `get_sinusoid_encoding_table`, in float64."""
    angles = [[row / 10000 ** (2 * (column // 2) / dim) for column in range(dim)] for row in range(count)]
    table = torch.tensor(angles, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = table[:, 0::2].sin(), table[:, 1::2].cos()
    return table


def official_blocks(x: torch.Tensor, state: dict, prefix: str, depth: int, heads: int) -> torch.Tensor:
    """Blocks with the official names of weights: attention with q and v biases, and layer scale."""
    for index in range(depth):
        block = {key.removeprefix(f"{prefix}blocks.{index}."): value for key, value in state.items()}
        normed = functional.layer_norm(x, x.shape[-1:], block["norm1.weight"], block["norm1.bias"], 1e-6)
        bias = torch.cat([block["attn.q_bias"], torch.zeros_like(block["attn.q_bias"]), block["attn.v_bias"]])
        q, k, v = (normed @ block["attn.qkv.weight"].T + bias).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + block["gamma_1"] * (
            attention.transpose(1, 2).flatten(2) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        )
        normed = functional.layer_norm(x, x.shape[-1:], block["norm2.weight"], block["norm2.bias"], 1e-6)
        hidden = functional.gelu(normed @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + block["gamma_2"] * (hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"])
    return x


def official_tokens(pixels: torch.Tensor, state: dict, prefix: str) -> torch.Tensor:
    embedded = functional.conv3d(
        pixels.double(), state[f"{prefix}patch_embed.proj.weight"], state[f"{prefix}patch_embed.proj.bias"], stride=(2, 14, 14)
    )
    return embedded.flatten(2).transpose(1, 2) + official_positions(48, 24)


def official_state(file) -> dict:
    return {key: value.double() for key, value in read_file(file)[0].items()}


def test_an_official_classifier_of_wide_clips_equals_a_reference(tmp_path):
    """28 x 56 pixels, patches of 14, 12 frames, layer scale: written, read, and compared with float64."""
    model = randomized(VideoClassifier(OFFICIAL, WIDE, 5), k_biases=False)
    file = model.save_pretrained(tmp_path, "official") / "model.pth"
    state = official_state(file)
    tokens = official_blocks(official_tokens(video(WIDE), state, ""), state, "", depth=2, heads=2)
    pooled = functional.layer_norm(tokens.mean(1), (24,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    expected = pooled @ state["head.weight"].T + state["head.bias"]
    loaded = VideoClassifier.from_pretrained(file, size=OFFICIAL)
    assert loaded.config == model.config
    with torch.no_grad():
        print(f"largest difference {(loaded(video(WIDE)) - expected).abs().max():.1e}")
        torch.testing.assert_close(loaded(video(WIDE)).double(), expected, atol=1e-5, rtol=1e-5)
        for layout in ("vmae_lab", "remote_code"):
            again = VideoClassifier.from_pretrained(model.save_pretrained(tmp_path / layout, layout))
            assert (again.clip, again.size.layer_scale) == (WIDE, 0.1)
            assert torch.equal(again(video(WIDE)), model(video(WIDE)))


def test_an_official_pretrained_model_of_wide_clips_equals_a_reference(tmp_path):
    model = randomized(VideoMAE(OFFICIAL, WIDE), k_biases=False)
    file = model.save_pretrained(tmp_path, "official") / "model.pth"
    state = official_state(file)
    mask = torch.arange(48).expand(2, -1) % 4 > 0
    decoder_mask = torch.arange(48).expand(2, -1) % 2 > 0
    visible = official_tokens(video(WIDE), state, "encoder.")[~mask].reshape(2, -1, 24)
    encoded = official_blocks(visible, state, "encoder.", depth=2, heads=2)
    encoded = functional.layer_norm(encoded, (24,), state["encoder.norm.weight"], state["encoder.norm.bias"], 1e-6)
    positions = official_positions(48, 16).expand(2, -1, -1)
    seen = encoded @ state["encoder_to_decoder.weight"].T + positions[~mask].reshape(2, -1, 16)
    masked = state["mask_token"] + positions[~decoder_mask].reshape(2, -1, 16)
    decoded = official_blocks(torch.cat([seen, masked], 1), state, "decoder.", depth=1, heads=2)[:, seen.shape[1] :]
    decoded = functional.layer_norm(decoded, (16,), state["decoder.norm.weight"], state["decoder.norm.bias"], 1e-6)
    expected = decoded @ state["decoder.head.weight"].T + state["decoder.head.bias"]
    loaded = VideoMAE.from_pretrained(file, size=OFFICIAL)
    assert loaded.config == model.config
    with torch.no_grad():
        found = loaded(video(WIDE), mask, decoder_mask)[0]
    print(f"largest difference {(found - expected).abs().max():.1e}")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        VideoMAE.from_pretrained(model.save_pretrained(tmp_path / "ours"))(video(WIDE), mask, decoder_mask)[0], found
    )


def test_official_files_tell_their_clip_unless_it_is_the_default(tmp_path):
    file = VideoClassifier(OFFICIAL, WIDE, 5).save_pretrained(tmp_path / "wide", "official") / "model.pth"
    assert read_file(file)[1] == {"num_frames": 12, "input_size": (28, 56)}
    assert official_arguments(ClipShape(patch=14)) == {}
    bare = tmp_path / "bare.pth"
    torch.save({"model": read_file(file)[0]}, bare)
    with pytest.warns(UserWarning, match="does not store the clip.*16 x 224 x 224.*12 x 28 x 56.*'recompute'"):
        assert VideoClassifier.from_pretrained(bare, size=OFFICIAL, frames=12, side=(28, 56)).clip.positions_from == (8, 16, 16)
    stated = VideoClassifier.from_pretrained(bare, size=OFFICIAL, frames=12, side=(28, 56), positions="recompute")
    assert torch.equal(stated.encoder.positions, sincos_positions(48, 24))


def test_transformers_computes_the_same_for_wide_clips(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = replace(OFFICIAL, layer_scale=None)
    model = randomized(VideoClassifier(size, WIDE, 5), k_biases=False)
    folder = model.save_pretrained(tmp_path, "transformers")
    assert json.loads((folder / "config.json").read_text())["image_size"] == [28, 56]
    crop = json.loads((folder / "preprocessor_config.json").read_text())
    assert (crop["size"], crop["crop_size"]) == ({"shortest_edge": 56}, {"height": 28, "width": 56})
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = theirs(video(WIDE).transpose(1, 2)).logits
        torch.testing.assert_close(logits, model(video(WIDE)), atol=1e-5, rtol=1e-5)
    back = VideoClassifier.from_pretrained(folder)
    assert back.clip == WIDE
    assert torch.equal(back(video(WIDE)), model(video(WIDE)))


def test_configs_keep_their_form():
    config = VideoClassifier(SMALL, replace(WIDE, patch=4, side=(28, 56)), 5).config
    assert config.model_dump(mode="json")["clip"]["side"] == [28, 56]
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config

"""Layer scale: equal to a float64 reference, saved and loaded in every layout that supports it, and absent by default."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import vmae_lab.models.registry  # noqa: F401  (registers the encoders)
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.stages.external_model import opened_stage
from vmae_lab.lab.stages.stage import plain_section
from vmae_lab.models.checkpoints import CheckpointError, open_checkpoint, part_of
from vmae_lab.models.checkpoints.load import read_file
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ClipShape, ModelSettings, Size
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import Trunk, sincos_positions
from vmae_lab.training.optim import parameter_groups
from vmae_lab.training.tasks.finetune import FinetuneTask, encoder_state

SIZE = Size(32, 2, 2, 64, 24, 1, 2, 48, patch=4, layer_scale=0.1)
CLIP = ClipShape(frames=4, side=16, patch=4)
VIDEO = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(CLIP.tokens).expand(2, -1) % 4 > 0
OFFICIAL = {"frames": 4, "side": 16, "size": SIZE}  # not in official files


def randomize(model):
    """Give every weight random values, except k biases, which other layouts do not have."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        if name.endswith("qkv.bias"):
            parameter.data.chunk(3)[1].zero_()
    return model.eval()


@pytest.fixture(scope="module")
def classifier():
    return randomize(VideoClassifier(SIZE, CLIP, classes=5))


@pytest.fixture(scope="module")
def pretrained():
    return randomize(VideoMAE(SIZE, CLIP))


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def reference_blocks(x, weights, depth, heads):
    """The blocks of VideoMAE V2 with gamma_1 and gamma_2, in the precision of `weights`."""
    for block in (part_of(weights, f"blocks.{index}.") for index in range(depth)):
        normed = functional.layer_norm(x, x.shape[-1:], block["norm1.weight"], block["norm1.bias"], 1e-6)
        qkv = normed @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        attended = attention.transpose(1, 2).flatten(2) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        x = x + block["ls1.gamma"] * attended
        normed = functional.layer_norm(x, x.shape[-1:], block["norm2.weight"], block["norm2.bias"], 1e-6)
        hidden = functional.gelu(normed @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + block["ls2.gamma"] * (hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"])
    return x


def test_outputs_equal_a_float64_reference(classifier, pretrained):
    patches = VIDEO.unflatten(2, (2, 2)).unflatten(4, (4, 4)).unflatten(6, (4, 4))  # (B, C, t, k, h, p, w, q)
    patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3).double()
    for model in (classifier, pretrained):
        weights = {name: value.double() for name, value in part_of(model.state_dict(), "encoder.").items()}
        tokens = patches @ weights["embed.weight"].T + weights["embed.bias"] + sincos_positions(CLIP.tokens, 32).double()
        expected = reference_blocks(tokens, part_of(weights, "trunk."), depth=2, heads=2)
        if "trunk.norm.weight" in weights:
            expected = functional.layer_norm(expected, (32,), weights["trunk.norm.weight"], weights["trunk.norm.bias"], 1e-6)
        torch.testing.assert_close(model.encoder(VIDEO).double(), expected, atol=1e-5, rtol=1e-5)
    decoder = {name: value.double() for name, value in part_of(pretrained.state_dict(), "decoder.").items()}
    tokens = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2))
    expected = reference_blocks(tokens.double(), decoder, depth=1, heads=2)
    torch.testing.assert_close(pretrained.decoder(tokens).double(), expected, atol=1e-5, rtol=1e-5)


def test_blocks_have_no_scale_by_default():
    names = set(Trunk(32, 2, 2, 64).state_dict())
    assert set(Trunk(32, 2, 2, 64, layer_scale=0.1).state_dict()) - names == {
        f"blocks.{index}.ls{branch}.gamma" for index in (0, 1) for branch in (1, 2)
    }
    assert "layer_scale" not in plain_section(ModelSettings(size="tiny"))
    assert "layer_scale" not in json.dumps(VideoMAE(replace(SIZE, layer_scale=None), CLIP).config.model_dump(mode="json"))
    settings = ModelSettings(size="tiny", layer_scale=0.1)
    assert plain_section(settings)["layer_scale"] == settings.dimensions.layer_scale == 0.1


@pytest.mark.parametrize("layout", ["vmae_lab", "official", "remote_code"])
def test_a_classifier_round_trip_is_bit_equal(classifier, tmp_path, layout):
    folder = classifier.save_pretrained(tmp_path, layout)
    loaded = VideoClassifier.from_pretrained(folder, **(OFFICIAL if layout == "official" else {}))
    assert (loaded.clip, loaded.size.layer_scale) == (CLIP, 0.1)
    assert equal(loaded.state_dict(), classifier.state_dict())
    assert torch.equal(loaded(VIDEO), classifier(VIDEO))


@pytest.mark.parametrize("layout", ["vmae_lab", "official"])
def test_a_pretrained_round_trip_is_bit_equal(pretrained, tmp_path, layout):
    folder = pretrained.save_pretrained(tmp_path, layout)
    loaded = VideoMAE.from_pretrained(folder, **(OFFICIAL if layout == "official" else {}))
    assert loaded.config == pretrained.config
    assert torch.equal(loaded(VIDEO, MASK)[0], pretrained(VIDEO, MASK)[0])
    with pytest.warns(UserWarning, match="newly initialized"):
        fine_tuned = VideoClassifier.from_pretrained(folder, classes=3, **(OFFICIAL if layout == "official" else {}))
    assert torch.equal(fine_tuned.encoder.trunk.blocks[1].ls2.gamma, pretrained.encoder.trunk.blocks[1].ls2.gamma)


def test_official_files_have_the_official_names(pretrained, tmp_path):
    """Layer scale is found in the weights, also if the given size does not mention it."""
    file = pretrained.save_pretrained(tmp_path, "official") / "model.pth"
    state, _ = read_file(file)
    for name in ("encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0"):
        assert {f"{name}.gamma_1", f"{name}.gamma_2"} <= state.keys()
    assert not any("ls1" in name or "ls2" in name for name in state)
    assert torch.equal(state["encoder.blocks.1.gamma_2"], pretrained.encoder.trunk.blocks[1].ls2.gamma)
    loaded = VideoMAE.from_pretrained(file, **{**OFFICIAL, "size": replace(SIZE, layer_scale=None)})
    assert equal(loaded.state_dict(), pretrained.state_dict())


def test_transformers_does_not_support_it(classifier, tmp_path):
    with pytest.raises(CheckpointError, match=r"'transformers'.*layer scale"):
        classifier.save_pretrained(tmp_path / "x", "transformers")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("scaled", [True, False])
def test_a_config_must_agree_with_the_weights(tmp_path, scaled):
    """`init_values` of remote code, and our own config next to official weights."""
    model, other = (
        VideoClassifier(replace(SIZE, layer_scale=scale), CLIP, 5) for scale in ((0.1, None) if scaled else (None, 0.1))
    )
    folder = model.save_pretrained(tmp_path / "remote", "remote_code")
    other.save_pretrained(tmp_path / "other", "remote_code")
    save_file(load_file(tmp_path / "other" / "model.safetensors"), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="init_values"):
        open_checkpoint(folder)
    model.save_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "ours", "official")
    with pytest.raises(CheckpointError, match=rf"layer_scale {scaled} \(weights: {not scaled}\)"):
        open_checkpoint(tmp_path / "ours" / "model.pth")


def test_training_from_such_an_encoder(smoke, tmp_path):
    """`model.layer_scale` must be set if and only if the encoder has layer scale."""
    recipe = build_recipe({**smoke, "arms": ["none"]})
    scaled = recipe.with_overrides({"model.layer_scale": 0.1})
    model = randomize(VideoMAE(scaled.model.dimensions, scaled.model.clip))
    checkpoint = open_checkpoint(model.save_pretrained(tmp_path))
    assert opened_stage(scaled, checkpoint).config.size.layer_scale == 0.1
    with pytest.raises(CheckpointError, match=r"layer_scale 0\.1.*Set .*model\.layer_scale"):
        opened_stage(recipe, checkpoint)
    encoder = encoder_state(checkpoint.state)
    tasks = {
        name: FinetuneTask(given.model, given.evaluate.finetune, given.data, None, [0], encoder, seed=0)
        for name, given in (("scaled", scaled), ("plain", recipe))
    }
    built = tasks["scaled"].build().encoder
    assert torch.equal(built.trunk.blocks[0].ls1.gamma, model.encoder.trunk.blocks[0].ls1.gamma)
    with pytest.raises(CheckpointError, match=r"unexpected: .*ls1\.gamma"):
        tasks["plain"].build()


def test_scales_are_not_decayed(classifier):
    groups = {id(p): group["weight_decay"] for group in parameter_groups(classifier, 0.05) for p in group["params"]}
    assert {groups[id(p)] for name, p in classifier.named_parameters() if name.endswith("gamma")} == {0.0}


def test_timm_creates_it():
    encoder = timm.create_model("vmae_tiny", num_frames=4, img_size=16, patch_size=4, init_values=0.1)
    assert torch.equal(encoder.trunk.blocks[0].ls1.gamma, torch.full((96,), 0.1))

"""Checkpoints in all layouts: round trips are bit-equal, and errors name what is wrong."""

import copy
import json
import os
import pickle

import pytest
import timm
import torch
from random_weights import randomized
from safetensors.torch import load_file, save_file

import vmae_lab.models.registry  # noqa: F401  (registers the encoders)
from vmae_lab.models.checkpoints import CheckpointError, formats, load
from vmae_lab.models.checkpoints.load import read_file
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape, Size
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import VideoEncoder, interpolated_positions, sincos_positions

CLIP = ClipShape(frames=4, side=16, patch=4)
VIDEO = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
GIVEN = {"frames": 4, "side": 16, "positions": "recompute"}  # of the training; not in these files
OWN_SIZE = Size(32, 2, 2, 64, 24, 1, 2, 48, patch=4)
LAYOUTS = ("vmae_lab", "transformers", "official", "remote_code")


@pytest.fixture(scope="module")
def classifier():
    return randomized(VideoClassifier(SIZES["tiny"], CLIP, classes=5), k_biases=False)


@pytest.fixture(scope="module")
def pretrained():
    return randomized(VideoMAE(SIZES["tiny"], CLIP), k_biases=False)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_classifier_round_trip_is_bit_equal(classifier, tmp_path, layout):
    classifier.save_pretrained(tmp_path, layout)
    back = VideoClassifier.from_pretrained(tmp_path)
    assert equal(back.state_dict(), classifier.state_dict())
    assert back.clip == CLIP
    assert not back.training
    assert torch.equal(back(VIDEO), classifier(VIDEO))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("layout", ["vmae_lab", "transformers", "official"])
def test_a_pretrained_round_trip_is_bit_equal(pretrained, tmp_path, layout):
    pretrained.save_pretrained(tmp_path, layout)
    # Official files do not state the number of heads. Official decoders have heads of 64, but tiny's has 3 heads of 16.
    asked = {"size": "tiny"} if layout == "official" else {}
    back = VideoMAE.from_pretrained(tmp_path, **asked)
    assert equal(back.state_dict(), pretrained.state_dict())
    mask = torch.arange(pretrained.clip.tokens).expand(2, -1) % 4 > 0
    assert torch.equal(back(VIDEO, mask)[0], pretrained(VIDEO, mask)[0])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("layout", ["vmae_lab", "transformers", "official"])
def test_every_layout_keeps_the_settings_of_pre_training(tmp_path, layout, known):
    """A loaded model with another target would give other errors of reconstruction."""
    model = VideoMAE(SIZES["tiny"], CLIP, normalise_target=not known, target_eps=0.25)
    model.stride = 3 if known else None
    back = VideoMAE.from_pretrained(model.save_pretrained(tmp_path, layout), size="tiny")
    assert (back.target_eps, back.stride, back.normalise_target) == (0.25, model.stride, not known)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_the_sampling_of_a_classifier(classifier, tmp_path, layout, known):
    model = copy.deepcopy(classifier)
    model.stride, model.sampling = (3, "sparse") if known else (None, None)
    back = VideoClassifier.from_pretrained(model.save_pretrained(tmp_path, layout))
    assert (back.stride, back.sampling) == (model.stride, model.sampling)


@pytest.mark.parametrize("layout", ["transformers", "official"])
def test_wrong_settings_of_training_are_refused(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(formats, "training_settings", lambda _: {formats.TRAINING: {"stride": "often"}})
    VideoMAE(SIZES["tiny"], CLIP).save_pretrained(tmp_path, layout)
    with pytest.raises(CheckpointError, match=r"wrong settings under the key 'vmae_lab': stride: "):
        VideoMAE.from_pretrained(tmp_path, size="tiny")


def test_only_our_layout_supports_all_settings(tmp_path):
    flat = randomized(VideoClassifier(OWN_SIZE, CLIP, classes=3, readout="flat"), k_biases=False)
    back = VideoClassifier.from_pretrained(flat.save_pretrained(tmp_path / "flat"))
    assert back.config == flat.config
    raw = VideoMAE(OWN_SIZE, CLIP, normalise_target=False, target_eps=0.01)
    assert VideoMAE.from_pretrained(raw.save_pretrained(tmp_path / "raw")).config == raw.config
    with pytest.raises(CheckpointError, match=r"'transformers'.*'flat'"):
        flat.save_pretrained(tmp_path / "x", "transformers")
    with pytest.raises(CheckpointError, match=r"'remote_code'.* decoder"):
        raw.save_pretrained(tmp_path / "x", "remote_code")
    with pytest.raises(CheckpointError, match=r"'onnx'.* vmae_lab, transformers"):
        raw.save_pretrained(tmp_path / "x", "onnx")
    assert not (tmp_path / "x").exists()


def test_a_k_bias_has_no_effect(classifier, tmp_path):
    """Our models have a k bias. Other layouts have none, since it does not change the softmax."""
    biased = VideoClassifier(SIZES["tiny"], CLIP, classes=5)
    biased.load_state_dict(classifier.state_dict())
    for name, parameter in biased.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.data.chunk(3)[1].normal_(generator=torch.Generator().manual_seed(2))
    back = VideoClassifier.from_pretrained(biased.save_pretrained(tmp_path, "transformers"))
    torch.testing.assert_close(back(VIDEO), biased.eval()(VIDEO), atol=1e-5, rtol=0)


def test_pretrained_to_classifier(pretrained, tmp_path):
    folder = pretrained.save_pretrained(tmp_path)
    new_head = ["head.fc_norm.weight", "head.fc_norm.bias", "head.head.weight", "head.head.bias"]
    with pytest.warns(UserWarning, match=f"newly initialized.*{', '.join(new_head)}"):
        model = VideoClassifier.from_pretrained(folder, classes=7)
    state = model.state_dict()
    given = {k: v for k, v in pretrained.state_dict().items() if k.startswith("encoder.") and ".trunk.norm." not in k}
    assert equal({k: v for k, v in state.items() if not k.startswith("head.")}, given)
    assert len(state["head.head.weight"]) == 7
    with pytest.warns(UserWarning, match="newly initialized"):
        same, other = (VideoClassifier.from_pretrained(folder, classes=7, seed=seed) for seed in (0, 1))
    assert equal(same.state_dict(), state)
    assert not equal(other.state_dict(), state)
    with pytest.raises(CheckpointError, match=r"class head.*classes="):
        VideoClassifier.from_pretrained(folder)


def test_other_frames_sides_and_classes(classifier, tmp_path):
    folder = classifier.save_pretrained(tmp_path)
    longer = VideoClassifier.from_pretrained(folder, frames=8, side=24)
    assert torch.equal(longer.encoder.positions, interpolated_positions(sincos_positions(2 * 4 * 4, 96), (2, 4, 4), (4, 6, 6)))
    numbered = VideoClassifier.from_pretrained(folder, frames=8, side=24, positions="recompute")
    assert torch.equal(numbered.encoder.positions, sincos_positions(4 * 6 * 6, 96))
    assert equal(longer.state_dict(), classifier.state_dict())
    assert longer(torch.rand(1, 3, 8, 24, 24)).shape == (1, 5)
    with pytest.warns(UserWarning, match=r"before use: head\.head\.weight, head\.head\.bias$"):
        wider = VideoClassifier.from_pretrained(folder, classes=9)
    assert torch.equal(wider.head.fc_norm.weight, classifier.head.fc_norm.weight)
    with pytest.warns(UserWarning, match=r"head\.pool\.latent"):
        VideoClassifier.from_pretrained(folder, readout="attentive")
    with pytest.raises(ValueError, match="cannot be split into"):
        VideoClassifier.from_pretrained(folder, side=18)


def test_loading_the_wrong_kind_of_model_fails(classifier, pretrained, tmp_path):
    folder = classifier.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no decoder"):
        VideoMAE.from_pretrained(folder)


PREFIXES = [
    "", "_orig_mod.", "module.", "backbone.", "encoder.", "module._orig_mod.", "_orig_mod.module.", "module.module.",
    "model.module.", "encoder.model.", "model.encoder.", "student.backbone.", "ema.module.", "_forward_module.model.",
    "_fsdp_wrapped_module._orig_mod.", "model.backbone._orig_mod.encoder.module.", "net.", "model_ema.module.",
]  # fmt: skip


def official(model, folder):
    return read_file(model.save_pretrained(folder, "official") / "model.pth")[0]


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_in_any_order_and_depth(classifier, pretrained, tmp_path, prefix):
    for model, asked in ((classifier, GIVEN), (pretrained, {**GIVEN, "size": "tiny"})):
        torch.save({"model": prefixed(official(model, tmp_path), prefix)}, tmp_path / "prefixed.pth")
        back = type(model).from_pretrained(tmp_path / "prefixed.pth", **asked)
        assert equal(back.state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", ["vmae_lab", "transformers", "remote_code"])
@pytest.mark.parametrize("prefix", ["module._orig_mod.", "model.", "_forward_module.student."])
def test_prefixes_in_every_layout(classifier, pretrained, tmp_path, layout, prefix):
    for model in (classifier, *([pretrained] if layout != "remote_code" else [])):
        file = model.save_pretrained(tmp_path / type(model).__name__, layout) / "model.safetensors"
        save_file(prefixed(load_file(file), prefix), file)
        assert equal(type(model).from_pretrained(file.parent).state_dict(), model.state_dict())


def test_wrappers_around_single_blocks(classifier, tmp_path):
    """FSDP, activation checkpointing and torch.compile add names to blocks."""
    state = official(classifier, tmp_path)
    for number, wrapper in enumerate(
        ("_checkpoint_wrapped_module", "_fsdp_wrapped_module._checkpoint_wrapped_module", "_orig_mod")
    ):
        state = {key.replace(f"blocks.{number}.", f"blocks.{number}.{wrapper}."): value for key, value in state.items()}
    assert "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.fc1.weight" in state
    state["patch_embed._orig_mod.proj.weight"] = state.pop("patch_embed.proj.weight")
    torch.save({"checkpoint": {"last": prefixed(state, "_fsdp_wrapped_module.")}}, tmp_path / "wrapped.pth")
    assert equal(VideoClassifier.from_pretrained(tmp_path / "wrapped.pth", **GIVEN).state_dict(), classifier.state_dict())


@pytest.mark.parametrize(
    "nests",
    [
        (), ("model",), ("module",), ("state_dict",), ("model_ema",), ("model_state",), ("model_state_dict",),
        ("ema_state_dict",), ("state_dict", "model"), ("checkpoint", "model_state", "module"),
    ],
    ids=str,
)  # fmt: skip
def test_nested_official_files(classifier, tmp_path, nests):
    content = official(classifier, tmp_path)
    for nest in reversed(nests):
        content = {nest: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    torch.save(content, tmp_path / "nested.pth")
    assert equal(VideoClassifier.from_pretrained(tmp_path / "nested.pth", **GIVEN).state_dict(), classifier.state_dict())


def test_the_model_is_preferred_to_its_moving_average(classifier, tmp_path):
    state = official(classifier, tmp_path)
    average = {key: value + 1 for key, value in state.items()}
    count = {"ema.n_averaged": torch.tensor(3)}
    for content in (
        {"model_ema": average, "model": state},
        {"state_dict": {**prefixed(average, "ema.module."), **prefixed(state, "model."), **count}},
    ):
        torch.save(content, tmp_path / "both.pth")
        with pytest.warns(UserWarning, match=r"both\.pth.*average.*ema"):
            back = VideoClassifier.from_pretrained(tmp_path / "both.pth", **GIVEN)
        assert equal(back.state_dict(), classifier.state_dict())
    torch.save({**prefixed(state, "module."), "n_averaged": torch.tensor(3)}, tmp_path / "average.pth")
    assert equal(VideoClassifier.from_pretrained(tmp_path / "average.pth", **GIVEN).state_dict(), classifier.state_dict())


def test_unknown_names_are_refused(classifier, pretrained, tmp_path):
    state, file = official(classifier, tmp_path), tmp_path / "unknown.pth"
    for content, named in (
        ({**state, "criterion.weight": torch.ones(2)}, "criterion.weight"),
        ({**state, "model.criterion.weight": torch.ones(2)}, "model.criterion.weight"),
        (prefixed(state, "visual."), "visual.patch_embed.proj.weight"),
        ({**prefixed(state, "student."), **prefixed(state, "teacher.")}, "teacher"),
        ({**prefixed(state, "student."), **prefixed(state, "model.")}, "model.patch_embed.proj.weight"),
        ({"student": state, "teacher": state}, "student, teacher"),
        ({**state, "epoch": 3}, "epoch"),
        ({**official(pretrained, tmp_path), "blocks.0.norm1.weight": torch.ones(96)}, "blocks.0.norm1.weight"),
    ):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=rf"unknown\.pth(.|\n)*{named}"):
            VideoClassifier.from_pretrained(file, classes=5, size="tiny", **GIVEN)


def test_integer_weights_are_refused(classifier, tmp_path):
    state = official(classifier, tmp_path)
    state["head.weight"] = state["head.weight"].to(torch.int8)
    torch.save({"model": state}, tmp_path / "quantised.pth")
    with pytest.raises(CheckpointError, match=r"head\.head\.weight"):
        VideoClassifier.from_pretrained(tmp_path / "quantised.pth", **GIVEN)


def test_a_classifier_of_the_first_token_is_refused(classifier, tmp_path):
    file = classifier.save_pretrained(tmp_path, "official") / "model.pth"
    state = {key.replace("fc_norm.", "norm."): value for key, value in read_file(file)[0].items()}
    torch.save({"model": state}, file)
    with pytest.raises(CheckpointError, match="use_mean_pooling"):
        VideoClassifier.from_pretrained(file, **GIVEN)


def test_decoder_depth_is_read_from_the_weights(tmp_path):
    """V1's base and large models have decoders of 4 and 12 blocks."""
    deep = randomized(VideoMAE(Size(96, 4, 3, 384, 64, 5, 1, 192, patch=4), CLIP), k_biases=False)
    back = VideoMAE.from_pretrained(deep.save_pretrained(tmp_path, "official"), **GIVEN)
    assert back.size.decoder_depth == 5
    assert equal(back.state_dict(), deep.state_dict())


def test_official_files_of_unknown_size_need_a_size(tmp_path):
    model = randomized(VideoClassifier(OWN_SIZE, CLIP, classes=5), k_biases=False)
    folder = model.save_pretrained(tmp_path, "official")
    with pytest.raises(CheckpointError, match=r"2 blocks of width 32 .*64.*size=Size"):
        VideoClassifier.from_pretrained(folder, **GIVEN)
    with pytest.raises(CheckpointError, match=r"'bse'.*giant"):
        VideoClassifier.from_pretrained(folder, size="bse", **GIVEN)
    back = VideoClassifier.from_pretrained(folder, size=OWN_SIZE, **GIVEN)
    assert torch.equal(back(VIDEO), model(VIDEO))


def test_errors_list_at_most_ten_names_per_problem(pretrained, tmp_path):
    folder = pretrained.save_pretrained(tmp_path)
    state = load_file(folder / "model.safetensors")
    blocks = [key for key in state if key.startswith("encoder.trunk.blocks.0.")]
    for key in blocks:
        state[key.replace("blocks.0", "blocks.9")] = state.pop(key)
    state["bridge.weight"] = state["bridge.weight"].T.contiguous()
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        VideoMAE.from_pretrained(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder} does not fit this model; 12 missing: encoder.trunk.blocks.0.")
    missing, unexpected, misshaped = message.split("; ")[1:]
    assert [part.count("blocks.") for part in (missing, unexpected)] == [10, 10]
    assert missing.endswith("and 2 more")
    assert unexpected.startswith("12 unexpected: encoder.trunk.blocks.9.")
    assert misshaped == "1 with another shape: bridge.weight: file (96, 48), model (48, 96)"


class Malicious:
    """Unpickling it would create a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.ones(1)}, "args": Malicious()}, "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"bad\.pth is refused: .*\(\w+\.mkdir\)"):
        read_file(tmp_path / "bad.pth")[0]
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(CheckpointError):
        read_file(tmp_path / "plain.pth")[0]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("layout", ["vmae_lab", "official"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(classifier, tmp_path, layout, part):
    folder = classifier.save_pretrained(tmp_path, layout)
    file = next(file for file in folder.iterdir() if file.suffix in (".safetensors", ".pth"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match=str(file)):
        VideoClassifier.from_pretrained(folder)


def test_paths_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint /nowhere/at/all"):
        VideoClassifier.from_pretrained("/nowhere/at/all")
    with pytest.raises(CheckpointError, match=rf"{tmp_path} must have one weights file"):
        VideoClassifier.from_pretrained(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth has no weights"):
        VideoClassifier.from_pretrained(tmp_path)
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth is not a VideoMAE: .* It has: conv1\.weight"):
        VideoClassifier.from_pretrained(tmp_path / "x.pth")
    (tmp_path / "notes.pth").write_text("not weights at all")
    with pytest.raises(CheckpointError, match=r"notes\.pth"):
        VideoClassifier.from_pretrained(tmp_path / "notes.pth")


def test_a_config_that_does_not_fit_is_refused(classifier, tmp_path):
    folder = classifier.save_pretrained(tmp_path, "transformers")
    config = json.loads((folder / "config.json").read_text())
    for change, expected in (
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"model_type": "vit"}, "config.json.*'videomae'"),
        ({"image_size": [16, 18]}, "4 frames x 16 x 18 pixels cannot be split"),
        ({"image_size": [16, -16]}, "number of pixels or \\[height, width\\]"),
        ({"patch_size": [4, 8]}, "4 x 8 pixels; patches must be square"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=expected):
            VideoClassifier.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert equal(VideoClassifier.from_pretrained(folder / "pytorch_model.bin").state_dict(), classifier.state_dict())
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        VideoClassifier.from_pretrained(folder)


def test_push_to_and_load_from_the_hub(classifier, tmp_path, monkeypatch):
    """The network is replaced: pushing uploads such a folder, and a downloaded folder is loaded."""
    kept = tmp_path / "hub"

    class Hub:
        def create_repo(self, repository, private, exist_ok):
            assert (repository, private, exist_ok) == ("someone/model", True, True)
            return "https://hub/someone/model"

        def upload_folder(self, repo_id, folder_path, commit_message):
            os.rename(folder_path, kept)
            os.mkdir(folder_path)

    monkeypatch.setattr("vmae_lab.models.checkpoints.save.HfApi", Hub)
    assert classifier.push_to_hub("someone/model", story="On **clips** of mine.") == "https://hub/someone/model"
    card = (kept / "README.md").read_text()
    assert "On **clips** of mine." in card
    assert "pipeline_tag: video-classification" in card
    monkeypatch.setattr(load, "snapshot_download", lambda name, revision, allow_patterns: str(kept))
    assert equal(VideoClassifier.from_pretrained("someone/model").state_dict(), classifier.state_dict())


def test_a_failed_download_is_reported(monkeypatch):
    def away(*_args, **_options):
        raise load.LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(load, "snapshot_download", away)
    with pytest.raises(CheckpointError, match=r"someone/model.*\(no connection\)"):
        VideoClassifier.from_pretrained("someone/model")


def test_timm_creates_our_models():
    assert {f"vmae_{size}" for size in SIZES} <= set(timm.list_models("vmae_*"))
    encoder = timm.create_model("vmae_tiny", num_frames=4, img_size=16, patch_size=4)
    assert isinstance(encoder, VideoEncoder)
    assert encoder(VIDEO).shape == (2, 2 * 4 * 4, 96)
    model = timm.create_model("vmae_tiny", num_classes=5, num_frames=4, img_size=16, patch_size=4, drop_path_rate=0.1)
    assert model(VIDEO).shape == (2, 5)
    with pytest.raises(ValueError, match=r"vmae_tiny.* weights"):
        timm.create_model("vmae_tiny", pretrained=True)

"""Files and folders of weights: which file and config are read, and errors for the others."""

import argparse
import io
import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vmae_lab.models.checkpoints import CheckpointError, open_checkpoint
from vmae_lab.models.checkpoints.load import read_file
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE

CLIP = ClipShape(frames=4, side=16, patch=4)
GIVEN = {"frames": 4, "side": 16, "positions": "recompute"}  # of the training; not in these files


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VideoClassifier(SIZES["tiny"], CLIP, classes=5).eval()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "w.safetensors", "mp_rank_00_model_states.pt"])
@pytest.mark.parametrize("layout", ["vmae_lab", "transformers", "remote_code"])
def test_a_file_uses_the_config_next_to_it(model, tmp_path, layout, name):
    weights = model.save_pretrained(tmp_path, layout) / "model.safetensors"
    state = load_file(weights)
    weights.unlink()
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"module" if name.startswith("mp_") else "state_dict": state}, tmp_path / name)
    for where in (tmp_path / name, tmp_path):
        back = VideoClassifier.from_pretrained(where)
        assert back.clip == CLIP
        assert equal(back.state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", ["vmae_lab", "transformers", "remote_code"])
def test_official_weights_use_a_config_of_any_layout(model, tmp_path, layout):
    model.save_pretrained(tmp_path, layout)
    model.save_pretrained(tmp_path, "official")
    back = VideoClassifier.from_pretrained(tmp_path / "model.pth")
    assert back.clip == CLIP
    assert equal(back.state_dict(), model.state_dict())
    other = VideoClassifier(SIZES["micro"], CLIP, classes=5).save_pretrained(tmp_path / "other", "official") / "model.pth"
    other.rename(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: config\.json .* width 96 \(weights: 64\)"):
        VideoClassifier.from_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize("layout", ["vmae_lab", "transformers"])
def test_official_weights_use_the_target_of_the_config(tmp_path, layout):
    model = VideoMAE(SIZES["tiny"], CLIP, normalise_target=False)
    model.save_pretrained(tmp_path, layout)
    file = model.save_pretrained(tmp_path, "official") / "model.pth"
    assert VideoMAE.from_pretrained(file).normalise_target is False


def test_an_unrelated_config_is_ignored(model, tmp_path):
    file = model.save_pretrained(tmp_path, "official") / "model.pth"
    (tmp_path / "config.json").write_text('{"lr": 0.001}')
    assert equal(VideoClassifier.from_pretrained(file, **GIVEN).state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_listed_in_an_index(model, tmp_path, kind):
    state = load_file(model.save_pretrained(tmp_path, "transformers") / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names, stem = list(state), "model" if kind == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-{1 + row % 2:05d}-of-00002.{kind}" for row, name in enumerate(names)}
    for part in set(places.values()):
        save = save_file if kind == "safetensors" else torch.save
        save({name: state[name] for name in names if places[name] == part}, tmp_path / part)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for where in (index, tmp_path):
        assert equal(VideoClassifier.from_pretrained(where).state_dict(), model.state_dict())
    (tmp_path / places[names[0]]).unlink()
    with pytest.raises(CheckpointError, match=places[names[0]]):
        VideoClassifier.from_pretrained(index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        VideoClassifier.from_pretrained(index)


def test_arguments_in_official_files_are_used(model, tmp_path):
    """Their files also contain NumPy numbers and paths."""
    state = read_file(model.save_pretrained(tmp_path, "official") / "model.pth")[0]
    arguments = argparse.Namespace(num_frames=4, input_size=16, output_dir=Path("/out"), best=np.float64(1.0), x=np.arange(3))
    torch.save({"model": state, "args": arguments, "max_accuracy": np.float32(81.0)}, tmp_path / "whole.pth")
    back = VideoClassifier.from_pretrained(tmp_path / "whole.pth")
    assert back.clip == CLIP
    assert equal(back.state_dict(), model.state_dict())
    video_mae = VideoMAE(SIZES["tiny"], CLIP)
    state = read_file(video_mae.save_pretrained(tmp_path / "pre", "official") / "model.pth")[0]
    for normalised in (True, False):
        arguments = argparse.Namespace(num_frames=4, input_size=16, normlize_target=normalised)
        torch.save({"model": state, "args": arguments}, tmp_path / "whole.pth")
        assert VideoMAE.from_pretrained(tmp_path / "whole.pth", size="tiny").normalise_target is normalised
    arguments.input_size = 18
    torch.save({"model": state, "args": arguments}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="input_size"):
        VideoMAE.from_pretrained(tmp_path / "whole.pth", size="tiny")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cos_attn": True}, "cos_attn"),
        ({"use_learnable_pos_emb": True}, "use_learnable_pos_emb"),
        ({"use_mean_pooling": False}, "use_mean_pooling"),
        ({"init_values": 0.1}, "init_values"),
        ({"norm_layer": "nn.BatchNorm1d"}, "norm_layer"),
        ({"layer_norm_eps": 0.1}, "layer_norm_eps"),
        ({"in_chans": 1}, "in_chans"),
        ({"qk_scale": 0.5}, "qk_scale"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"num_heads": 5}, "heads"),
        ({"tubelet_size": 0}, "model_config"),
    ],
)
def test_unsupported_settings_of_remote_code_are_refused(model, tmp_path, change, named):
    file = model.save_pretrained(tmp_path, "remote_code") / "config.json"
    config = json.loads(file.read_text())
    config["model_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=named):
        VideoClassifier.from_pretrained(tmp_path)


def test_remote_code_without_qkv_bias(model, tmp_path):
    folder = model.save_pretrained(tmp_path, "remote_code")
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "_bias" not in name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: .*qkv\.bias"):
        VideoClassifier.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_config"]["qkv_bias"] = False
    (folder / "config.json").write_text(json.dumps(config))
    back = VideoClassifier.from_pretrained(folder)
    assert not any(value.any() for name, value in back.state_dict().items() if name.endswith("qkv.bias"))


class Recipe:
    """A class of a training script that is pickled next to the weights."""


def run_lines(message):
    """Run the Python code in an error message, as a user does who trusts the file."""
    lines = [line.removeprefix("    ") for line in str(message).splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})


@pytest.mark.parametrize(
    "kind", ["zip", "legacy", "protocol 4", "whole module", "plain pickle", "nested", "list", "other name"]
)
def test_the_code_in_the_message_converts_a_refused_file(model, tmp_path, kind):
    file = tmp_path / "refused.pth"
    state = read_file(model.save_pretrained(tmp_path, "official") / "model.pth")[0]
    content = {"model": state, "recipe": Recipe()}
    elsewhere = {
        "nested": {"state": {"net": state}, "of": Recipe()},
        "list": [state, Recipe()],
        "other name": {"net": state, "of": Recipe()},
    }
    if kind in elsewhere:
        torch.save(elsewhere[kind], file)
    elif kind in ("zip", "legacy"):
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "protocol 4":
        torch.save({"model": state}, file, pickle_protocol=4)
    elif kind == "whole module":
        torch.save({"model": model}, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"refused\.pth is refused") as refused:
        open_checkpoint(file)
    run_lines(refused.value)
    if kind == "whole module":  # the weights of this package need its config
        model.save_pretrained(tmp_path)
    back = VideoClassifier.from_pretrained(tmp_path / "refused_weights.pth", **({} if kind == "whole module" else GIVEN))
    assert equal(back.state_dict(), model.state_dict())


def test_the_code_in_the_message_converts_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript") as refused:
        open_checkpoint(tmp_path / "script.pt")
    run_lines(refused.value)
    assert read_file(tmp_path / "script_weights.pth")[0].keys() == {"weight", "bias"}


def _zip(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def _tar(names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 346\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><head></head></html>", "web page"),
        (b"<html>429</html>", "web page"),
        (_zip(["a.txt"]), "zip"),
        (_tar(["a.txt"]), "tar archive"),
        (_tar(["sys_info", "pickle", "storages", "tensors"]), "weights_only=False"),
        (b"\x1f\x8b\x08\x00" + bytes(30), "gzip"),
        (_zip(["m/data.pkl", "m/version"])[:-30], "truncated"),
        (b'{"error": "not found"}', "JSON"),
        (bytes(200), ""),
    ],
    ids=["empty", "LFS", "page", "short page", "zip", "tar", "old tar", "gzip", "cut zip", "JSON", "zeros"],
)
def test_files_without_weights_are_refused(tmp_path, suffix, content, named):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}(.|\n)*{re.escape(named)}"):
        open_checkpoint(file)


def test_a_file_is_recognized_by_its_content(model, tmp_path):
    state = load_file(model.save_pretrained(tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert equal(VideoClassifier.from_pretrained(tmp_path).state_dict(), model.state_dict())
    torch.save(state, tmp_path / "model.safetensors")
    assert equal(VideoClassifier.from_pretrained(tmp_path / "model.safetensors").state_dict(), model.state_dict())


def test_folders_of_trainers_and_distributed_checkpoints(model, tmp_path):
    folder = model.save_pretrained(tmp_path, "transformers")
    torch.save({"lr": 1}, folder / "training_args.bin")
    torch.save({"lr": 1}, folder / "optimizer.pt")
    assert equal(VideoClassifier.from_pretrained(folder).state_dict(), model.state_dict())
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt, training_args\.bin"):
        VideoClassifier.from_pretrained(folder)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"dcp_to_torch {sharded}"):
        VideoClassifier.from_pretrained(sharded)

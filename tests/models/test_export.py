"""Exported classifiers compute the logits of the model for every batch size, and carry its class names."""

import json
from pathlib import Path

import pytest
import torch
from random_weights import randomized

from vmae_lab.cli import main
from vmae_lab.models import export
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.export import CONFIG, ExportError, export_classifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
NAMES = ("wave", "clap", "jump")
VIDEO = torch.randint(256, (5, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def classifier(readout: str = "mean") -> VideoClassifier:
    model = randomized(VideoClassifier(MODEL.dimensions, MODEL.clip, 3, readout)).eval()
    model.class_names, model.stride = NAMES, 2
    return model


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["mean", "flat", "attentive"])
def test_onnx_equals_the_model_for_other_batch_sizes(tmp_path, readout):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    model, path = classifier(readout), tmp_path / "new" / "model.onnx"
    assert export_classifier(model, path, "onnx") < 1e-4
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = model(VIDEO[:batch])
        [logits] = session.run(["logits"], {"video": VIDEO[:batch].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)
    config = json.loads(session.get_modelmeta().custom_metadata_map[CONFIG])
    assert (tuple(config["class_names"]), config["stride"]) == (NAMES, 2)


@pytest.mark.slow
def test_large_onnx_weights_are_in_a_second_file(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    monkeypatch.setattr(export, "ONE_FILE", 0)
    model, path = classifier(), tmp_path / "model.onnx"
    export_classifier(model, path, "onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    [logits] = onnxruntime.InferenceSession(path).run(None, {"video": VIDEO.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(VIDEO), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["mean", "attentive"])
def test_torch_export_equals_the_model_for_other_batch_sizes(tmp_path, readout):
    model, path = classifier(readout), tmp_path / "model.pt2"
    assert export_classifier(model, path, "torch_export") < 1e-4
    extra = {CONFIG: ""}
    module = torch.export.load(path, extra_files=extra).module()
    for batch in (1, 2, 5):
        with torch.no_grad():
            torch.testing.assert_close(module(VIDEO[:batch]), model(VIDEO[:batch]), atol=1e-4, rtol=0)
    assert tuple(json.loads(extra[CONFIG])["class_names"]) == NAMES


def test_a_file_that_computes_something_else_does_not_replace_another(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("an older file")
    monkeypatch.setattr(export, "_write_torch", lambda model, path: path.write_text("a wrong file"))
    monkeypatch.setattr(export, "_torch_runner", lambda path: lambda video: torch.zeros(len(video), 3))
    with pytest.raises(ExportError, match=r"differ by .* for a batch of 1; .*model.pt2 was not written"):
        export_classifier(classifier(), path, "torch_export")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "an older file"


def test_a_missing_package_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    classifier().save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "model.onnx")]) == 2
    assert "(onnx, onnxscript, onnxruntime): pip install 'vmae-lab[export]'" in capsys.readouterr().err


def test_the_command_prints_the_input_and_needs_a_class_head(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classifier().save_pretrained(tmp_path / "model")
    assert main(["export", "model", "--to", "torch_export"]) == 0
    printed = capsys.readouterr().out
    assert "video: uint8 (batch, 3, 4, 16, 16); logits: float32 (batch, 3)" in printed
    assert printed.endswith("exported: model.pt2\n")
    assert Path("model.pt2").exists()
    VideoMAE(MODEL.dimensions, MODEL.clip).save_pretrained(tmp_path / "pretrained")
    assert main(["export", "pretrained"]) == 2
    assert "has no class head" in capsys.readouterr().err

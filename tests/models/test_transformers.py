"""Hugging Face transformers opens what we write and says the same; we open what it writes."""

import os

import pytest
import torch

from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.videomae import VideoMAE

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

SIZE, CLIP = Size(48, 3, 4, 192, 24, 2, 2, 96, patch=8), ClipShape(frames=8, side=32, patch=8)
VIDEO = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(CLIP.tokens).expand(2, -1) % 4 > 0
# transformers norms after the mean and after the decoder with an epsilon of 1e-5, ours and the official code with 1e-6.
CLOSE = {"atol": 1e-5, "rtol": 0}


def shaken(model):
    """Weights large enough to tell a wrong place; biases and k biases too."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.ndim == 1 else 0.0, std=0.2, generator=generator)
    return model.eval()


def theirs(model, *inputs):
    with torch.no_grad():
        return model.eval()(VIDEO.transpose(1, 2), *inputs).logits


def opened_whole(kind, folder):
    """A model of theirs, and that its file had every name it asks for and no other."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def test_they_open_our_classifier(tmp_path):
    ours = shaken(VideoClassifier(SIZE, CLIP, classes=6))
    model = opened_whole(transformers.VideoMAEForVideoClassification, ours.save_pretrained(tmp_path, "transformers"))
    torch.testing.assert_close(theirs(model), ours(VIDEO), **CLOSE)


def test_they_open_our_pretrained_model(tmp_path):
    ours = shaken(VideoMAE(SIZE, CLIP))
    model = opened_whole(transformers.VideoMAEForPreTraining, ours.save_pretrained(tmp_path, "transformers"))
    torch.testing.assert_close(theirs(model, MASK), ours(VIDEO, MASK)[0], **CLOSE)


def test_their_processor_prepares_clips_as_ours_are(tmp_path):
    VideoClassifier(SIZE, CLIP, classes=6).save_pretrained(tmp_path, "transformers")
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path)
    frames = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepared = processor(list(frames.numpy()), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    model = shaken(VideoClassifier(SIZE, CLIP, classes=6))
    torch.testing.assert_close(model(prepared.transpose(1, 2).float()), model(frames[None].transpose(1, 2)), atol=1e-4, rtol=0)


def config(**changes):
    return transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=192, decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=96, layer_norm_eps=1e-6, **changes,
    )  # fmt: skip


def test_we_open_their_classifier(tmp_path):
    model = shaken(transformers.VideoMAEForVideoClassification(config(num_labels=6)))
    model.save_pretrained(tmp_path)
    ours = VideoClassifier.from_pretrained(tmp_path)
    assert (ours.classes, ours.clip, ours.size) == (6, CLIP, SIZE)
    torch.testing.assert_close(ours(VIDEO), theirs(model), **CLOSE)


def test_we_open_their_pretrained_model(tmp_path):
    model = shaken(transformers.VideoMAEForPreTraining(config(use_mean_pooling=False)))
    model.save_pretrained(tmp_path)
    ours = VideoMAE.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(VIDEO, MASK)[0], theirs(model, MASK), **CLOSE)
    with pytest.warns(UserWarning, match="initialised anew"):
        VideoClassifier.from_pretrained(tmp_path, classes=3)


def test_we_open_their_bare_encoder(tmp_path):
    model = shaken(transformers.VideoMAEModel(config(use_mean_pooling=True)))
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="initialised anew"):
        ours = VideoClassifier.from_pretrained(tmp_path, classes=3)
    with torch.no_grad():
        tokens = model(VIDEO.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(ours.encoder(VIDEO).mean(1), tokens.mean(1), **CLOSE)

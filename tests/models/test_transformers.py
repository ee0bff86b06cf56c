"""transformers loads our models with equal outputs, and we load its models."""

import os

import pytest
import torch
from made_videos import write_video
from random_weights import randomized

from vmae_lab.evaluation.features import open_encoder
from vmae_lab.evaluation.predict import predict, preprocess
from vmae_lab.models.checkpoints import CheckpointError, save
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import IMAGENET_MEAN, IMAGENET_STD

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

SIZE, CLIP = Size(48, 3, 4, 192, 24, 2, 2, 96, patch=8), ClipShape(frames=8, side=32, patch=8)
VIDEO = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(CLIP.tokens).expand(2, -1) % 4 > 0
# After the mean and after the decoder, transformers uses a LayerNorm with eps 1e-5; we and the official code use 1e-6.
CLOSE = {"atol": 1e-5, "rtol": 0}


def theirs(model, *inputs):
    with torch.no_grad():
        return model.eval()(VIDEO.transpose(1, 2), *inputs).logits


def opened_whole(kind, folder):
    """Load a transformers model, and check that the file has exactly the expected names."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def test_a_video_has_the_same_top_classes_with_transformers(tmp_path):
    ours = randomized(VideoClassifier(SIZE, CLIP, classes=6))
    video = write_video(tmp_path / "a.mp4", 60)
    model = opened_whole(transformers.VideoMAEForVideoClassification, ours.save_pretrained(tmp_path / "m", "transformers"))
    predicted, clips = predict(ours, video), preprocess(video, ours) / 255
    pixels = (clips - torch.tensor(IMAGENET_MEAN).view(-1, 1, 1, 1)) / torch.tensor(IMAGENET_STD).view(-1, 1, 1, 1)
    with torch.no_grad():
        probabilities = model.eval()(pixels.transpose(1, 2)).logits.softmax(1).mean(0)
    torch.testing.assert_close(probabilities, torch.from_numpy(predicted.probabilities).float(), **CLOSE)
    assert probabilities.topk(5).indices.tolist() == predicted.labels(5)


def test_transformers_loads_our_classifier(tmp_path):
    ours = randomized(VideoClassifier(SIZE, CLIP, classes=6))
    model = opened_whole(transformers.VideoMAEForVideoClassification, ours.save_pretrained(tmp_path, "transformers"))
    torch.testing.assert_close(theirs(model), ours(VIDEO), **CLOSE)


def test_transformers_loads_our_pretrained_model(tmp_path):
    ours = randomized(VideoMAE(SIZE, CLIP))
    model = opened_whole(transformers.VideoMAEForPreTraining, ours.save_pretrained(tmp_path, "transformers"))
    torch.testing.assert_close(theirs(model, MASK), ours(VIDEO, MASK)[0], **CLOSE)


@pytest.mark.parametrize(
    ("installed", "warns"), [("4.57.6", False), ("5.5.0", False), ("5.5.1", True), ("5.17.0", True), ("5.18.0", False)]
)
def test_saving_warns_of_versions_that_drop_the_biases(tmp_path, monkeypatch, recwarn, installed, warns):
    """Which versions these are was read in the wheels of transformers."""
    monkeypatch.setattr(save, "version", lambda name: installed)
    folder = VideoClassifier(SIZE, CLIP, classes=6).save_pretrained(tmp_path, "transformers")
    assert any(f"transformers {installed} would load" in str(warning.message) for warning in recwarn) == warns
    assert save.BIASES_LOADED_BY in (folder / "README.md").read_text()


def test_transformers_processor_equals_our_preprocessing(tmp_path):
    VideoClassifier(SIZE, CLIP, classes=6).save_pretrained(tmp_path, "transformers")
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path)
    frames = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepared = processor(list(frames.numpy()), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    model = randomized(VideoClassifier(SIZE, CLIP, classes=6))
    torch.testing.assert_close(model(prepared.transpose(1, 2).float()), model(frames[None].transpose(1, 2)), atol=1e-4, rtol=0)


OWN = {
    "image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 192, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 96, "layer_norm_eps": 1e-6,
}  # fmt: skip


def config(**changes):
    return transformers.VideoMAEConfig(**{**OWN, **changes})


def test_we_load_their_classifier(tmp_path):
    model = randomized(transformers.VideoMAEForVideoClassification(config(num_labels=6)))
    model.save_pretrained(tmp_path)
    ours = VideoClassifier.from_pretrained(tmp_path)
    assert (ours.classes, ours.clip, ours.size) == (6, CLIP, SIZE)
    torch.testing.assert_close(ours(VIDEO), theirs(model), **CLOSE)


def test_we_load_their_pretrained_model(tmp_path):
    model = randomized(transformers.VideoMAEForPreTraining(config(use_mean_pooling=False)))
    model.save_pretrained(tmp_path)
    ours = VideoMAE.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(VIDEO, MASK)[0], theirs(model, MASK), **CLOSE)
    with pytest.warns(UserWarning, match="newly initialized"):
        VideoClassifier.from_pretrained(tmp_path, classes=3)


def test_we_load_their_bare_encoder(tmp_path):
    model = randomized(transformers.VideoMAEModel(config(use_mean_pooling=True)))
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="newly initialized"):
        ours = VideoClassifier.from_pretrained(tmp_path, classes=3)
    with torch.no_grad():
        tokens = model(VIDEO.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(ours.encoder(VIDEO).mean(1), tokens.mean(1), **CLOSE)


def test_the_default_config_has_no_final_norm_in_the_encoder(tmp_path):
    """By default use_mean_pooling is true, and then the encoder of VideoMAEForPreTraining has no final LayerNorm."""
    default = transformers.VideoMAEConfig(**{name: value for name, value in OWN.items() if name != "layer_norm_eps"})
    assert default.use_mean_pooling
    model = randomized(transformers.VideoMAEForPreTraining(default))
    model.save_pretrained(tmp_path / "theirs")
    ours = VideoMAE.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(ours(VIDEO, MASK)[0], theirs(model, MASK), **CLOSE)
    for layout in ("vmae_lab", "transformers"):
        back = VideoMAE.from_pretrained(ours.save_pretrained(tmp_path / layout, layout))
        assert back.state_dict().keys() == ours.state_dict().keys()
        assert torch.equal(back(VIDEO, MASK)[0], ours(VIDEO, MASK)[0])
    again = opened_whole(transformers.VideoMAEForPreTraining, tmp_path / "transformers")
    torch.testing.assert_close(theirs(again, MASK), theirs(model, MASK), **CLOSE)
    with pytest.raises(CheckpointError, match=r"'official'.* LayerNorm"):
        ours.save_pretrained(tmp_path / "official", "official")
    with pytest.warns(UserWarning, match="newly initialized"):
        VideoClassifier.from_pretrained(tmp_path / "theirs", classes=3)
    with pytest.warns(UserWarning, match="has no fc_norm"):
        encoder, norm = open_encoder(tmp_path / "theirs", None, None, "cpu")
    assert norm is not None
    torch.testing.assert_close(encoder(VIDEO), ours.encoder(VIDEO))


@pytest.mark.parametrize("pooled", [True, False])
def test_a_model_without_q_and_v_biases(tmp_path, pooled):
    model = randomized(transformers.VideoMAEForPreTraining(config(use_mean_pooling=pooled, qv_bias=False)))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(VideoMAE.from_pretrained(tmp_path)(VIDEO, MASK)[0], theirs(model, MASK), **CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_pix_loss": False},
        {"tubelet_size": 4},
        {"num_frames": 4},
        {"image_size": 16},
        {"image_size": [32, 32], "patch_size": 8},
        {"num_attention_heads": 2, "decoder_num_attention_heads": 3},
        {"intermediate_size": 100, "decoder_intermediate_size": 50},
        {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 48},
        {"layer_norm_eps": 1e-12},
        {"layer_norm_eps": 1e-5},
        {"initializer_range": 0.1},
    ],
    ids=str,
)
def test_supported_settings_of_transformers_are_used(tmp_path, changes):
    """Outputs are equal, and so is the loss, which depends on the target."""
    model = randomized(transformers.VideoMAEForPreTraining(config(use_mean_pooling=False, **changes)))
    model.save_pretrained(tmp_path)
    ours = VideoMAE.from_pretrained(tmp_path)
    clip = ours.clip
    video = torch.randn(2, 3, clip.frames, clip.side, clip.side, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(clip.tokens).expand(2, -1) % 4 > 0
    with torch.no_grad():
        expected = model.eval()(video.transpose(1, 2), mask)
        prediction, decoded = ours(video, mask)
        loss = (prediction - ours.target(video, decoded)).square().mean()
    torch.testing.assert_close(prediction, expected.logits, **CLOSE)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"layer_norm_eps": 1e-2}, "layer_norm_eps"),
        ({"num_channels": 1}, "num_channels"),
        ({"image_size": 30}, "image_size"),
    ],
)
def test_unsupported_settings_of_transformers_are_refused(tmp_path, changes, named):
    transformers.VideoMAEForPreTraining(config(**changes)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        VideoMAE.from_pretrained(tmp_path)


def test_a_transformers_classifier_of_the_first_token_is_refused(tmp_path):
    transformers.VideoMAEForVideoClassification(config(use_mean_pooling=False, num_labels=6)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="use_mean_pooling"):
        VideoClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_ignored_with_a_warning(tmp_path, name):
    model = randomized(transformers.VideoMAEForVideoClassification(config(num_labels=6, **{name: 0.1})))
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=name):
        ours = VideoClassifier.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(VIDEO), theirs(model), **CLOSE)

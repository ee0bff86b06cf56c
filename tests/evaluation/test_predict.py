"""Predictions of single videos equal those of multi-view testing; windows along a video equal those that are read alone."""

import numpy as np
import pytest
import torch
from made_videos import write_video

import vmae_lab
from vmae_lab.data.decoding import VideoError, VideoSettings
from vmae_lab.data.frame_sampling import Exactly
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import read_list
from vmae_lab.evaluation.features import FeatureError
from vmae_lab.evaluation.multi_view import ViewSettings, cut_views, mean_probabilities, view_probabilities
from vmae_lab.evaluation.predict import (
    Prediction,
    PredictionError,
    Timeline,
    open_classifier,
    predict,
    predict_along,
    predict_videos,
    preprocess,
    read_names,
    video_features,
    windows_along,
)
from vmae_lab.models.checkpoints import CheckpointError
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.seeding import seeded

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
VIEWS = ViewSettings(clips=3, crops=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of different lengths, shapes and decoders."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", 40)
    write_video(folder / "b.avi", 23, codec="mpeg4", size=(48, 64))
    write_video(folder / "c.mp4", 3, size=(96, 48))
    return folder


def classifier(**changes) -> VideoClassifier:
    with seeded(0, "classifier"):
        model = VideoClassifier(MODEL.dimensions, MODEL.clip, 3, init_scale=1.0).eval()
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def listed(where, decoding=VideoSettings()):  # noqa: B008 (it cannot be changed)
    return clips_of({"one": (read_list(where.name, where.parent), "img_{:05d}.jpg")}, decoding)


def test_predictions_are_those_of_multi_view_testing_bit_for_bit(folder):
    clips, model = listed(folder), classifier()
    expected = view_probabilities(model, clips, MODEL, 2, VIEWS)
    found = dict(predict_videos(model, clips, 2, VIEWS))
    assert list(found) == [clips.name(row) for row in range(3)]
    for row, (name, prediction) in enumerate(found.items()):
        assert np.array_equal(prediction.probabilities, expected[row])
        assert np.array_equal(predict(model, name, stride=2, views=VIEWS).probabilities, expected[row])


def test_an_unreadable_video_is_given_as_its_error_and_the_others_are_predicted(folder, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.avi"):
        (tmp_path / "videos" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "videos" / "aa.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(400))
    found = dict(predict_videos(classifier(), listed(tmp_path / "videos"), 2, VIEWS))
    kinds = [type(result) for result in found.values()]
    assert kinds == [Prediction, VideoError, Prediction]
    with pytest.raises(VideoError, match=r"aa\.mp4"):
        predict(classifier(), tmp_path / "videos" / "aa.mp4")


def test_clips_are_sampled_as_in_training_if_nothing_else_is_given(folder):
    own = classifier(stride=3, sampling="sparse")
    video = folder / "a.mp4"
    given = preprocess(video, own, stride=3, views=ViewSettings(sampling="sparse"))
    assert torch.equal(preprocess(video, own), given)
    assert given.shape == (15, 3, 4, 16, 16)
    assert given.dtype == torch.uint8
    plain = preprocess(video, classifier(), stride=4, views=ViewSettings())
    assert torch.equal(preprocess(video, classifier()), plain)
    assert not torch.equal(plain, given)


def test_the_top_classes_are_sorted_and_named():
    prediction = Prediction("a.mp4", np.array([0.2, 0.5, 0.2, 0.1]), ("w", "x", "y", "z"))
    assert prediction.top(3) == [("x", 0.5), ("w", 0.2), ("y", 0.2)]
    assert prediction.table(9)["label"].tolist() == [1, 0, 2, 3]
    model = classifier(class_names=("up", "down", "still"))
    assert predict.__module__ == vmae_lab.predict.__module__
    assert model.config.class_names == ("up", "down", "still")


def test_features_are_mean_tokens_after_the_norm(folder):
    model, video = classifier(), folder / "a.mp4"
    clips = preprocess(video, model, stride=2, views=VIEWS)
    with torch.no_grad():
        expected = model.head.fc_norm(model.encoder(clips).mean(1)).mean(0)
    assert torch.equal(video_features(model, video, stride=2, views=VIEWS), expected)
    pretrained = VideoMAE(MODEL.dimensions, MODEL.clip).eval()
    features = video_features(pretrained, video, stride=2, views=VIEWS)
    assert torch.equal(features, video_features(pretrained.encoder, video, stride=2, views=VIEWS))
    with pytest.raises(TypeError, match="not a Linear"):
        preprocess(video, torch.nn.Linear(1, 1))


def test_features_of_an_inner_layer_and_of_all_tokens(folder):
    model, video, options = classifier(), folder / "a.mp4", {"stride": 2, "views": VIEWS}
    clips, depth = preprocess(video, model, **options), model.encoder.depth
    tokens = video_features(model, video, **options, layer=1, tokens=True)
    with torch.no_grad():
        assert torch.equal(tokens, model.encoder(clips, layer=1))
    assert torch.equal(video_features(model, video, **options, layer=1), tokens.mean(1).mean(0))
    assert torch.equal(video_features(model, video, **options, layer=depth), video_features(model, video, **options))
    with pytest.raises(FeatureError, match=f"there is no layer {depth + 1}"):
        video_features(model, video, layer=depth + 1)


# ----------------------------------------------------------------------------------------------------------------------
# Along a video


@pytest.mark.parametrize(("count", "stride", "hop"), [(40, 2, 3), (40, 2, 16), (7, 2, 1), (41, 1, 4), (90, 5, 40)])
def test_windows_are_complete_in_order_and_cut_anywhere(count, stride, hop):
    video = torch.arange(count, dtype=torch.uint8).view(1, count, 1, 1)
    for chunk in (1, 5, 32, 100):
        windows = windows_along(video.split(chunk, 1), 4, stride, hop)
        found = [(start, end, window.flatten().tolist()) for start, end, window in windows]
        starts = range(0, count - 3 * stride, hop)
        assert found == [(start, start + 3 * stride + 1, [start + stride * index for index in range(4)]) for start in starts]


def test_a_short_video_has_one_window_that_repeats_its_last_frame():
    video = torch.arange(5, dtype=torch.uint8).view(1, 5, 1, 1)
    ((start, end, window),) = windows_along(video.split(2, 1), 4, 2, 8)
    assert (start, end, window.flatten().tolist()) == (0, 5, [0, 2, 4, 4])


@pytest.mark.parametrize("name", ["a.mp4", "b.avi"])
def test_windows_along_a_video_are_those_that_are_read_alone(folder, name):
    clips, model = listed(folder / name, VideoSettings(decoder="pyav")), classifier()
    along = predict_along(model, clips, 0, 0.2, 2, crops=2)  # every 5 frames at 25 a second
    starts = np.round(along.start_s * 25).astype(int)
    count = {"a.mp4": 40, "b.avi": 23}[name]
    assert starts.tolist() == list(range(0, count - 6, 5))
    assert along.end_s == pytest.approx((starts + 7) / 25)
    for start, probabilities in zip(starts, along.probabilities, strict=True):
        window = clips.video(0, Exactly(tuple(range(start, start + 7, 2))), 16)
        assert np.array_equal(probabilities, mean_probabilities(model, cut_views(window, 4, 16, 2)))


def test_a_short_video_ends_with_its_last_frame(folder):
    along = predict_along(classifier(), listed(folder / "c.mp4"), 0, 1.0, 2)
    assert along.start_s.tolist() == [0]
    assert along.end_s == pytest.approx([3 / 25])


def test_segments_join_windows_of_one_class():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    start = np.arange(4.0)
    segments = Timeline("a.mp4", start, start + 1.5, probabilities, ("x", "y")).segments()
    assert segments["class"].tolist() == ["x", "y", "x"]
    assert segments[["start_s", "end_s"]].to_numpy().tolist() == [[0, 2], [2, 3], [3, 4.5]]
    assert segments["probability"].tolist() == pytest.approx([0.8, 0.8, 0.6])


def test_a_rate_that_is_unknown_is_refused(folder, monkeypatch):
    clips = listed(folder / "a.mp4")
    stream = clips.decoders.stream

    def without_rate(video, short_side):
        from dataclasses import replace

        for decoded in stream(video, short_side):
            yield replace(decoded, info=replace(decoded.info, fps=0.0))

    monkeypatch.setattr(clips.decoders, "stream", without_rate)
    with pytest.raises(VideoError, match=r"a\.mp4.*frame rate is unknown"):
        predict_along(classifier(), clips, 0, 1.0, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Models that cannot predict


def test_only_a_trained_classifier_predicts(tmp_path):
    pretrained = VideoMAE(MODEL.dimensions, MODEL.clip).save_pretrained(tmp_path / "pre-trained")
    with pytest.raises(CheckpointError, match=r"no class head.*finetune PARAMS --encoder"):
        open_classifier(pretrained)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        open_classifier(tmp_path / "nowhere")
    flat = VideoClassifier(MODEL.dimensions, MODEL.clip, 3, "flat").save_pretrained(tmp_path / "flat")
    assert open_classifier(flat).head.readout == "flat"
    with pytest.raises(CheckpointError, match=r"not for 128"):
        open_classifier(flat, side=32)
    with pytest.raises(CheckpointError, match="5 frames"):
        open_classifier(flat, frames=5)


def test_a_saved_classifier_keeps_names_and_sampling(tmp_path):
    model = classifier(class_names=("up", "down", "still"), stride=3, sampling="sparse")
    opened = open_classifier(model.save_pretrained(tmp_path))
    assert opened.config == model.config
    assert VideoClassifier.from_pretrained(tmp_path).config == model.config


def test_a_file_of_names_has_one_line_per_class(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("up\ndown\nstill\n\n")
    assert read_names(names, classifier(), "model") == ("up", "down", "still")
    names.write_text("up\ndown\n")
    with pytest.raises(PredictionError, match=r"names\.txt has 2 lines, but model has a head for 3 classes"):
        read_names(names, classifier(), "model")


def test_a_model_whose_training_diverged_predicts_nothing(folder):
    model = classifier()
    model.head.head.bias.data[1] = float("nan")
    with pytest.raises(PredictionError, match=r"a\.mp4 are not finite"):
        predict(model, folder / "a.mp4")

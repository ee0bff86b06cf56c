"""Temporal detection: the whole path on generated features, and unusual videos."""

import json
import pickle

import numpy as np
import pytest
import torch

from vmae_lab.data.activitynet import Untrimmed, UntrimmedSettings, open_untrimmed, read_predictions, write_predictions
from vmae_lab.evaluation.temporal_map import segment_map
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape, pyramid_padding
from vmae_lab.training import distributed
from vmae_lab.training.dataloader import BatchParts, Loading, data_loader
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.localise import LocaliseSettings, LocaliseTask, localise

RATE, STRIDE, FRAMES, WIDTH = 10.0, 5, 10, 8
CLASSES = ("jump", "run", "throw")
QUIET = Compute(threads=1, tensorboard=False)
SMALL = {"width": 32, "heads": 2, "window": 9, "stem_layers": 1, "levels": 4, "head_layers": 1, "layer_scale": 1.0}


@pytest.fixture
def make(tmp_path):
    """Write videos with given lengths and segments. Features show the class at the middle of a window."""

    def write(videos: dict[str, tuple[float, list]], extra: float = 0.0, beyond: str = "refuse", **lists) -> Untrimmed:
        rng, database = np.random.default_rng(0), {}
        (tmp_path / "features").mkdir(exist_ok=True)
        for name, (duration, segments) in videos.items():
            windows = max(1, int((duration * RATE - FRAMES) // STRIDE) + 1)
            middles = (np.arange(windows) * STRIDE + FRAMES / 2) / RATE
            shown = rng.normal(0, 0.1, (windows, WIDTH))
            for start, end, label in segments:
                shown[(middles >= start) & (middles < end), CLASSES.index(label)] += 1.0
            np.save(tmp_path / "features" / f"{name}.npy", shown.astype(np.float32))
            rows = [
                {"segment": [start, end], "label": label, "label_id": CLASSES.index(label)} for start, end, label in segments
            ]
            database[name] = {"subset": "training", "duration": duration, "fps": RATE, "annotations": rows}
        # So that all classes occur.
        database["other"] = {
            "subset": "elsewhere", "duration": 9.0, "fps": RATE,
            "annotations": [{"segment": [1, 2], "label": name, "label_id": code} for code, name in enumerate(CLASSES)],
        }  # fmt: skip
        (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
        return open_untrimmed(settings(beyond=beyond, **lists).videos, "train")

    def settings(beyond: str = "refuse", steps: int = 4, **changes) -> LocaliseSettings:
        lists = {
            "root": str(tmp_path), "annotations": "annotations.json", "train": ["training"], "beyond": beyond,
            "features": {"folder": "features", "stride": STRIDE, "frames": FRAMES},
        }  # fmt: skip
        base = {
            "videos": {"lists": lists}, "shape": SMALL, "steps": steps, "batch_size": 2, "lr": 0.002, "ema": None,
            "warmup_steps": 1, "drop_path": 0.0,
        }  # fmt: skip
        return LocaliseSettings(**{**base, **changes})

    write.settings = settings
    return write


FEW = {
    "one": (60.0, [(5, 9, "jump"), (20, 32, "run"), (40, 42, "throw")]),
    "two": (45.0, [(3, 6, "run"), (10, 30, "throw")]),
    "three": (80.0, [(11, 13, "throw"), (20, 28, "jump"), (33, 35, "jump"), (50, 70, "run")]),
    "nothing": (30.0, []),
    "four": (20.0, [(2.5, 4, "jump"), (8, 17, "run")]),
}


@pytest.mark.slow
def test_training_overfits_a_few_videos(make, tmp_path):
    """The whole path: features from files, training, whole videos, Soft-NMS, results file, mAP."""
    videos = make(FEW)
    settings = make.settings(steps=100, lr=0.005, warmup_steps=10)
    features = videos.features()
    trained = train(LocaliseTask(settings, videos, features, seed=0), tmp_path / "run", QUIET, progress=False)
    write_predictions(tmp_path / "predictions.json", localise(trained.model, videos.annotations.videos, features, settings))
    predictions = read_predictions(tmp_path / "predictions.json")
    result = segment_map(videos.annotations.segments, predictions, videos.annotations.classes, [0.3, 0.5])
    assert result.by_threshold[1] > 0.95, result
    assert predictions.groupby("video").size().max() <= 200
    assert (predictions.start >= 0).all()
    durations = predictions.video.map(videos.annotations.videos.set_index("video").duration)
    assert (predictions.end <= durations).all()
    untrained = localise(
        LocaliseTask(settings, videos, features, seed=0).build(), videos.annotations.videos, features, settings
    )
    assert segment_map(videos.annotations.segments, untrained, videos.annotations.classes, [0.5]).mean < 0.5


def test_the_result_is_the_moving_average(make, tmp_path):
    videos = make(FEW)
    results = [
        train(
            LocaliseTask(make.settings(ema=ema, lr=0.02), videos, videos.features(), 0),
            tmp_path / str(ema),
            QUIET,
            progress=False,
        ).model.scales.detach()
        for ema in (None, 0.9)
    ]
    assert (results[1] - 1).abs().max() < (results[0] - 1).abs().max()


def test_batches_do_not_depend_on_workers(make):
    videos = make(FEW)
    task = LocaliseTask(make.settings(), videos, videos.features(), seed=1)
    alone = list(data_loader(BatchParts(task.batch, range(2)), range(3, 8), Loading(0), pin_memory=False))
    apart = list(data_loader(BatchParts(task.batch, range(2)), range(3, 8), Loading(2), pin_memory=False))
    for batch, other in zip(alone, apart, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    later = LocaliseTask(make.settings(), videos, videos.features(), seed=1).batch(7, range(2))  # as after a resume
    assert all(torch.equal(later[name], alone[-1][name]) for name in later)


def test_the_dataset_can_be_pickled(make):
    """On macOS, loader workers are spawned and get it pickled."""
    videos = make(FEW)
    batches = BatchParts(LocaliseTask(make.settings(), videos, videos.features(), seed=1).batch, range(2))
    expected, got = batches[3], pickle.loads(pickle.dumps(batches))[3]
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_losses_of_parts_add_up(make):
    """Weighted as by the loop. Each part has the number of positives of the whole step."""
    videos = make(FEW)
    task = LocaliseTask(make.settings(batch_size=4), videos, videos.features(), seed=0)
    model = task.build().eval()
    whole = task.batch(2, range(4))
    parts = [task.batch(2, rows) for rows in (range(3), range(3, 4))]
    assert whole["positives"][0] == parts[0]["positives"][0] == parts[1]["positives"][0]
    cpu = torch.device("cpu")
    mean = sum(task.weight(part) / task.weight(whole) * task.loss(model, part, cpu) for part in parts)
    torch.testing.assert_close(mean, task.loss(model, whole, cpu))


def test_the_loss_is_divided_by_a_moving_average_of_positives(make):
    videos = make(FEW)
    task = LocaliseTask(make.settings(), videos, videos.features(), seed=0)
    mean = 100.0
    for step in range(4):
        batch = task.batch(step, range(2))
        positive = batch["label"].any(2) & ~pyramid_padding(batch["padding"], 4)
        mean = 0.9 * mean + 0.1 * max(1, int(positive.sum()))
        assert batch["positives"].tolist() == pytest.approx([mean, mean])
    assert mean < 90  # these videos have few


def test_a_stretch_has_an_action_and_cuts_segments(make):
    videos = make({"long": (500.0, [(3, 13, "jump"), (480, 481, "run")])})
    task = LocaliseTask(make.settings(longest=50), videos, videos.features(), seed=0)
    for position in range(40):
        start, length = task.stretch(position, "long")
        segments, labels = task.segments("long", start, length)
        assert length == 50
        assert 0 <= start <= task.features.lengths["long"] - 50
        assert len(labels) >= 1
        assert ((segments >= 0) & (segments <= 50)).all() or start == 0
    # [3, 13] s are time steps 5 to 25: from step 15 on, half of it is left; from 16 on, less.
    assert task.segments("long", 15, 50)[0].tolist() == [[0.0, 10.0]]
    assert len(task.segments("long", 16, 50)[0]) == 0


def test_unusual_videos(make, tmp_path):
    """Videos without actions, of a single frame, with overlapping segments, with a segment beyond the end."""
    hard = {
        "empty": (30.0, []),
        "flash": (0.1, []),
        "both": (30.0, [(5, 15, "jump"), (8, 12, "run"), (8, 12, "jump"), (5, 15, "throw")]),
        "beyond": (20.0, [(15, 22, "run")]),
    }
    with pytest.raises(ValueError, match=r"beyond.*annotation 1"):
        make(hard)
    videos = make(hard, beyond="keep")
    settings = make.settings(beyond="keep", steps=30)
    features = videos.features()
    assert features.lengths["flash"] == 1
    trained = train(LocaliseTask(settings, videos, features, 0), tmp_path / "run", QUIET, progress=False)
    predictions = localise(trained.model, videos.annotations.videos, features, settings)
    assert set(predictions.video) == set(hard), "each has predictions"
    assert (predictions[predictions.video == "flash"].end <= 0.1).all()
    assert (predictions[predictions.video == "beyond"].end <= 20.0).all()
    assert np.isfinite(predictions[["start", "end", "score"]].to_numpy()).all()
    task = LocaliseTask(settings, videos, features, 0)
    segments, _ = task.segments("beyond", 0, features.lengths["beyond"])
    assert segments[0, 1].item() == pytest.approx((22 * RATE - FRAMES / 2) / STRIDE), "training uses the part beyond the end"


def test_no_predictions_are_an_empty_table(make):
    videos = make({"some": (30.0, [(1, 2, "run")])})
    settings = make.settings(suppress={"least_score": 0.999})
    predictions = localise(
        ActionFormer(ActionFormerShape(**SMALL), WIDTH, CLASSES).eval(), videos.annotations.videos, videos.features(), settings
    )
    assert predictions.empty
    assert list(predictions.columns) == ["video", "start", "end", "label", "score"]
    assert segment_map(videos.annotations.segments, predictions, CLASSES, [0.5]).mean == 0


def test_invalid_settings_are_refused(make):
    make(FEW)
    with pytest.raises(ValueError, match=r"stretch \[1.0, 0.5\]"):
        make.settings(stretch=(1.0, 0.5))
    with pytest.raises(ValueError, match=r"thresholds \[1.5\]"):
        make.settings(thresholds=(1.5,))
    with pytest.raises(ValueError, match=r"one of videos\.motionworld"):
        UntrimmedSettings()


@pytest.mark.parametrize(("given", "used"), [("auto", "fp32"), ("bf16", "bf16")])
def test_training_is_in_float32_by_default(make, monkeypatch, given, used):
    """Also on a GPU that supports bf16, in which distances of 100 time steps differ by 0.5 or not at all."""
    monkeypatch.setattr(distributed, "bf16_is_native", lambda: True)
    videos = make(FEW)
    task = LocaliseTask(make.settings(precision=given), videos, videos.features(), seed=0)
    assert task.settings.precision == used
    assert distributed.accelerator_for(task.settings).mixed_precision == {"fp32": "no", "bf16": "bf16"}[used]

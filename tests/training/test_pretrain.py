"""Samples, masks and targets in the batches of pre-training."""

from collections import Counter

import numpy as np
import pytest
import torch

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld import MotionworldSettings
from vmae_lab.data.samplers import round_counts
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
SIZES = {"digits": 10, "sticks": 4, "camera": 2}


class Watched:
    """Blank clips. Records the rows of requested videos."""

    def __init__(self):
        self.sources = [source for source, size in SIZES.items() for _ in range(size)]
        self.labels, self.requests = np.zeros(len(self.sources), dtype=np.int64), []

    def __len__(self) -> int:
        return len(self.sources)

    def video(self, index: int, choose, short_side: int | None = None) -> torch.Tensor:
        self.requests.append(index)
        return torch.zeros(3, len(choose(MODEL.frames)), 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize("steps", [5, 40])  # part of a round, and more than one round
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("mixing", [1.0, 0.5, 0.0])
def test_samples_by_source_equal_the_drawn_samples(mixing, repeats, steps):
    """Reports of mixtures show these counts. Repeats of a clip count once."""
    data = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16, mixing=mixing)
    settings, clips = PretrainSettings(steps=steps, batch_size=4, lr=1e-3, repeats=repeats), Watched()
    task = PretrainTask(MODEL, MaskSettings(encoder_ratio=0.75), settings, data, clips, seed=0)
    counts = task.samples_by_source()
    assert sum(counts.values()) == 4 * steps // repeats
    for step in range(steps):
        assert task.batch(step, range(4))["video"].shape == (4, 3, 4, 16, 16)
    assert len(clips.requests) == 4 * steps // repeats, "repeats are of one decoded clip"
    assert counts == Counter(clips.sources[index] for index in clips.requests)


def test_a_round_has_the_shares_of_the_mixture():
    data = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16, mixing=0.5)
    settings = PretrainSettings(steps=3, batch_size=sum(SIZES.values()), lr=1e-3)
    task = PretrainTask(MODEL, MaskSettings(), settings, data, Watched(), seed=0)
    shares = dict(zip(SIZES, round_counts(list(SIZES.values()), 0.5), strict=True))
    assert task.samples_by_source() == {source: 3 * count for source, count in shares.items()}


class Noise(Watched):
    """Clips of 40 frames of noise, larger than their crops. Records the requested frames."""

    def video(self, index: int, choose, short_side: int | None = None) -> torch.Tensor:
        self.requests.append(tuple(choose(40)))
        return torch.randint(256, (3, 4, 24, 24), generator=torch.Generator().manual_seed(index)).to(torch.uint8)


def noise(repeats: int = 1, scales: tuple[float, ...] = (1.0, 0.7)) -> tuple[PretrainTask, Noise]:
    data = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16, stride=3, crop_scales=scales)
    settings, clips = PretrainSettings(steps=50, batch_size=4, lr=1e-3, repeats=repeats), Noise()
    masks = MaskSettings(encoder="random", encoder_ratio=0.75, decoder="random")
    return PretrainTask(MODEL, masks, settings, data, clips, seed=0), clips


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_processes_get_rows_of_one_batch(repeats):
    """The rows of two processes together equal those of one, even if the split is within repeats."""
    task, _ = noise(repeats)
    whole, first, last = (task.training_batch(5, rows) for rows in (range(4), range(1), range(1, 4)))
    assert whole.keys() == {"video", "visible", "decoded", "counted", "total_weight"}
    for name in whole:
        assert torch.equal(whole[name], torch.cat([first[name], last[name]])), name
    assert whole["total_weight"].tolist() == 4 * [task.weight(whole)]


def test_every_step_draws_new_masks_and_windows():
    task, clips = noise()
    batches = [task.batch(step, range(4)) for step in range(9)]
    for name in ("encoder_mask", "decoder_mask"):
        assert len({mask.numpy().tobytes() for batch in batches for mask in batch[name]}) == 36, name
    assert {tuple(np.diff(frames)) for frames in clips.requests} == {(3, 3, 3)}
    starts = [frames[0] for frames in clips.requests]
    assert min(starts) < 6 < 24 < max(starts), "31 starts are possible, all over the video"
    assert len(set(starts)) > 15


def test_repeats_are_cropped_independently():
    """Repeats have the same frames of the same clip. One pair in seven gets the same crop, since there are few crops."""
    task, clips = noise(repeats=2)
    pairs = [task.batch(step, range(4))["video"].unflatten(0, (2, 2)) for step in range(50)]
    assert len(clips.requests) == 100
    differ = [not torch.equal(first, second) for pair in pairs for first, second in pair]
    assert 0.7 < np.mean(differ) < 1
    uncropped, _ = noise(repeats=2, scales=(1.0,))
    assert all(torch.equal(*pair) for pair in uncropped.batch(0, range(4))["video"].unflatten(0, (2, 2)))


class Numbered(Watched):
    """Clips whose pixels are 16 times their row."""

    def video(self, index: int, choose, short_side: int | None = None) -> torch.Tensor:
        return super().video(index, choose, short_side) + 16 * index


@pytest.mark.parametrize("repeats", [1, 2])
def test_target_from_other_clip_is_the_next_clip(repeats):
    data = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16)
    settings = PretrainSettings(steps=5, batch_size=4, lr=1e-3, repeats=repeats, target_from="other_clip")
    task = PretrainTask(MODEL, MaskSettings(encoder_ratio=0.75), settings, data, Numbered(), seed=0)
    for step in range(5):
        batch = task.batch(step, range(2, 4))
        for row in (2, 3):
            position = (4 * step + row) // repeats
            assert batch["video"][row - 2].unique().tolist() == [16 * task.order[position]]
            assert batch["target"][row - 2].unique().tolist() == [16 * task.order[position + 1]]
            assert batch["target"].shape == batch["video"].shape


def test_the_loss_uses_the_target_clip():
    data = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16)
    settings = PretrainSettings(steps=5, batch_size=2, lr=1e-3, target_from="other_clip", normalise_target=False)
    task = PretrainTask(MODEL, MaskSettings(encoder_ratio=0.75), settings, data, Numbered(), seed=0)
    batch, drawn, model = task.training_batch(0, range(2)), task.batch(0, range(2)), task.build()
    prediction, decoded = model(batch["video"], drawn["encoder_mask"], drawn["decoder_mask"])
    assert torch.equal(decoded, batch["decoded"])
    by_hand = (prediction - model.target(batch["target"], decoded)).square()[batch["counted"]].mean()
    assert task.loss(model, batch, torch.device("cpu")).item() == pytest.approx(by_hand.item(), rel=1e-5)
    own = {name: value for name, value in batch.items() if name != "target"}
    assert task.loss(model, own, torch.device("cpu")).item() != pytest.approx(by_hand.item(), rel=1e-3)

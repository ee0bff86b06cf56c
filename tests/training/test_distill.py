"""Distillation: the loss by hand, a teacher that is never changed, a student that approaches it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld import MotionworldSettings
from vmae_lab.models.checkpoints import CheckpointError
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.optim import parameter_groups
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.distill import DistillSettings, DistillTask, Teacher, feature_loss, soft_loss
from vmae_lab.training.tasks.finetune import MixSettings

SMALL = ModelSettings(size="micro", frames=4, side=16, patch=4)
LARGE = ModelSettings(size="tiny", frames=4, side=16, patch=4)
DATA = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16, crop_scales=(1.0,))
CPU = torch.device("cpu")


class Noise:
    """Sixteen clips of noise, with or without labels."""

    def __init__(self, labelled: bool = False):
        self.labels = np.arange(16) % 8 if labelled else np.full(16, -1)
        self.pixels = torch.randint(256, (16, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 16

    def video(self, index: int, choose, short_side: int | None = None) -> torch.Tensor:
        return self.pixels[index]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """An untrained larger model whose predictions are far from uniform."""
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        model = VideoClassifier(LARGE.dimensions, LARGE.clip, 8, init_scale=40.0)
    return Teacher(model.state_dict(), LARGE)


def task(teacher: Teacher, clips: Noise | None = None, kind=DistillTask, **settings) -> DistillTask:
    given = DistillSettings(**{"steps": 60, "batch_size": 8, "lr": 3e-3, "drop_path": 0.0, "head_init_scale": 1.0, **settings})
    return kind(SMALL, given, DATA, clips or Noise(), list(range(16)), None, teacher, seed=0)


def compute(**settings) -> Compute:
    return Compute(**{"checkpoint_every": 100, "log_every": 1, "tensorboard": False, **settings})


def test_soft_loss_by_hand():
    """Two clips, two classes, temperature 2: T^2 times the mean over clips of sum p ln(p / q)."""
    scores, wanted = [[1.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 0.0]]

    def softened(logits: list[float]) -> list[float]:
        powers = [math.exp(value / 2) for value in logits]
        return [power / sum(powers) for power in powers]

    by_hand = 4 * sum(
        p * math.log(p / q) for a, b in zip(scores, wanted, strict=True) for q, p in zip(softened(a), softened(b), strict=True)
    ) / 2  # fmt: skip
    assert soft_loss(torch.tensor(scores), torch.tensor(wanted), 2.0).item() == pytest.approx(by_hand, rel=1e-6)
    assert soft_loss(torch.tensor(wanted), torch.tensor(wanted), 2.0).item() == pytest.approx(0, abs=1e-7)


def test_feature_losses_by_hand():
    ours, theirs = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [3.0, 4.0]])
    assert feature_loss(ours, theirs, "mse").item() == pytest.approx(1 / 4)
    assert feature_loss(ours, theirs, "cosine").item() == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [None, MixSettings()])
def test_a_student_approaches_its_teacher_without_labels(teacher, tmp_path, mix):
    """On unlabelled clips: KL divergence from the teacher's predictions before and after training."""
    distill_task = task(teacher, temperature=2.0, mix=mix)
    with torch.no_grad():
        wanted = distill_task.teacher(Noise().pixels)

    def divergence(model) -> float:
        with torch.no_grad():
            return soft_loss(model.eval()(Noise().pixels), wanted, 1.0).item()

    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        before = divergence(distill_task.build().classifier)
    after = divergence(train(distill_task, tmp_path, compute(), progress=False).model.classifier)
    assert after < before / 2
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 1.5


def test_the_teacher_is_not_changed(teacher, tmp_path):
    distill_task = task(teacher, steps=4, feature_weight=1.0, hard_weight=0.0)
    trained = train(distill_task, tmp_path, compute(), progress=False)
    assert all(torch.equal(value, teacher.state[name]) for name, value in distill_task.teacher.state_dict().items())
    assert not distill_task.teacher.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in distill_task.teacher.parameters())
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert kept.keys() == trained.model.state_dict().keys()
    assert all(name.startswith(("classifier.", "to_teacher.")) for name in kept), "the checkpoint does not contain the teacher"


def test_the_teacher_is_prepared_once_and_computes_as_under_autocast(teacher, monkeypatch):
    """Its linear layers are stored in bf16, to which autocast would cast them in each step; the loss is the same."""
    distill_task, other = task(teacher), task(teacher)
    other.teacher_is_ready = True  # as loaded, in float32
    student, batch, moved = distill_task.build(), distill_task.batch(0, range(4)), []
    prepare = distill_task.prepare_teacher
    monkeypatch.setattr(distill_task, "prepare_teacher", lambda device: moved.append(device) or prepare(device))
    with torch.autocast("cpu", torch.bfloat16):
        losses = [each.loss(student, batch, CPU) for each in (distill_task, distill_task, other)]
    assert losses[0] == losses[1] == losses[2]
    assert len(moved) == 1
    assert {part.weight.dtype for part in distill_task.teacher.modules() if isinstance(part, nn.Linear)} == {torch.bfloat16}
    assert distill_task.teacher.encoder.trunk.blocks[0].norm1.weight.dtype == torch.float32


def test_the_loss_is_the_weighted_sum_of_its_terms(teacher):
    """Predictions, labels and features of one batch, each computed separately."""
    distill_task = task(
        teacher, Noise(labelled=True), temperature=3.0, hard_weight=0.5, feature_weight=0.25, label_smoothing=0.0
    )
    student, batch = distill_task.build().eval(), distill_task.batch(0, range(8))
    video, wanted = batch["video"], distill_task.teacher(batch["video"])
    tokens = student.classifier.encoder(video)
    soft = soft_loss(student.classifier(video), wanted, 3.0)
    hard = functional.cross_entropy(student.classifier(video), batch["label"])
    far = functional.mse_loss(student.to_teacher(tokens.mean(1)), distill_task.teacher.encoder(video).mean(1))
    total = distill_task.loss(student, batch, CPU)
    torch.testing.assert_close(total, soft + 0.5 * hard + 0.25 * far)
    total.backward()
    assert student.to_teacher.weight.grad.abs().sum() > 0


def test_labels_are_used_only_with_a_hard_weight(teacher):
    assert set(task(teacher).batch(0, range(4))) == {"video"}
    assert set(task(teacher, Noise(labelled=True), hard_weight=1.0).batch(0, range(4))) == {"video", "label"}
    with pytest.raises(ValueError, match=r"hard_weight 0\.1"):
        task(teacher, hard_weight=0.1)


def test_an_interrupted_distillation_ends_with_the_same_weights(teacher, tmp_path):
    settings = {"steps": 6, "feature_weight": 1.0, "ema": 0.5, "repeats": 2, "mix": MixSettings(), "drop_path": 0.2}
    whole = train(task(teacher, **settings), tmp_path / "whole", compute(), progress=False).model

    class Stops(DistillTask):
        def loss(self, *arguments):
            if (tmp_path / "parts" / "checkpoint.pt").exists():
                raise KeyboardInterrupt
            return super().loss(*arguments)

    with pytest.raises(KeyboardInterrupt):
        train(task(teacher, kind=Stops, **settings), tmp_path / "parts", compute(checkpoint_every=2), progress=False)
    resumed = train(task(teacher, **settings), tmp_path / "parts", compute(workers=2), progress=False)
    assert resumed.steps_run == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_layer_decay_of_a_student(teacher):
    """Parameters have the same scale as in the classifier; the layer to the teacher has that of the head."""
    student = task(teacher, feature_weight=1.0).build()

    def scales(model) -> dict[str, float]:
        scale = {id(p): group["lr_scale"] for group in parameter_groups(model, 0.05, 0.5) for p in group["params"]}
        return {name: scale[id(p)] for name, p in model.named_parameters()}

    alone, inside = scales(student.classifier), scales(student)
    assert {name.removeprefix("classifier."): s for name, s in inside.items() if name.startswith("classifier.")} == alone
    assert inside["to_teacher.weight"] == inside["classifier.head.head.weight"] == 1.0
    depth = SMALL.dimensions.depth
    assert inside["classifier.encoder.embed.weight"] == 0.5 ** (depth + 1)
    assert student.no_weight_decay() == {"classifier.head.pool.latent"}


def test_a_teacher_that_does_not_fit_is_an_error(teacher):
    with pytest.raises(ValueError, match="teacher takes clips of 8 x 16 x 16, the student of 4 x 16 x 16"):
        task(Teacher(teacher.state, LARGE.model_copy(update={"frames": 8})))
    with pytest.raises(CheckpointError, match="the teacher does not fit this model"):
        task(Teacher(teacher.state, SMALL))

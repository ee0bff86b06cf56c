"""Spatial detection from lists to frame mAP: learning, reproducibility, and evaluation of all boxes."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_videos import drawn
from torchvision.ops import roi_align

from vmae_lab.data.ava import SceneLists, Scenes, SceneSettings, open_scenes, read_detections, write_detections
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.motionworld.scenes import SceneWorldSettings
from vmae_lab.data.motionworld.writer import encode_mp4
from vmae_lab.data.transforms import BoxAugment
from vmae_lab.data.video_lists import ListError
from vmae_lab.evaluation.frame_map import frame_map
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.detect import DetectSettings, DetectTask, detect
from vmae_lab.utils.seeding import seeded

CPU = Compute(tensorboard=False)
MODEL = ModelSettings(size="micro", frames=8, side=24, patch=6)
WORLD = SceneSettings(motionworld=SceneWorldSettings(side=32, distance=1.4, train=6, validation=2, test=3))
PLAIN = BoxAugment(short_side=(30, 30), flip=0.0, colour=(0, 0, 0, 0), outward=(0, 0), inward=(0, 0))


def settings_of(scenes: SceneSettings = WORLD, **more) -> DetectSettings:
    own = {
        "steps": 4, "batch_size": 4, "lr": 1e-3, "stride": 2, "side": 24, "test_short_side": 24, "precision": "fp32",
        "augment": BoxAugment(short_side=(24, 30), flip=0.0), "head_init_scale": 1.0,
    }  # fmt: skip
    return DetectSettings(scenes=scenes, **{**own, **more})


@pytest.fixture(scope="module")
def scenes(home) -> Scenes:
    return open_scenes(WORLD, "train")


def task_of(scenes: Scenes, seed: int = 0, **more) -> DetectTask:
    return DetectTask(MODEL, settings_of(**more), scenes, None, seed)


@pytest.mark.slow
def test_training_overfits_a_few_scenes(scenes, tmp_path):
    """The whole path. An error in boxes, labels, features or the order of rows would make this impossible."""
    task = task_of(
        scenes, steps=250, batch_size=6, lr=2e-3, warmup_steps=20, side=30, test_short_side=30, augment=PLAIN, drop_path=0.0,
        layer_decay=1.0, clip_grad=1.0, enlarge=(0, 0),
    )  # fmt: skip
    model = train(task, tmp_path, CPU, progress=False).model
    predictions = detect(model, scenes, task.settings, MODEL, ["true"])["true"]
    assert frame_map(scenes.truth, predictions, scenes.evaluated).mean > 0.95
    write_detections(tmp_path / "predictions.csv", predictions)
    assert frame_map(scenes.truth, read_detections(tmp_path / "predictions.csv"), scenes.evaluated).mean > 0.95
    wrong = scenes.truth.assign(action_id=scenes.truth.action_id % 8 + 1)
    assert frame_map(wrong, predictions, scenes.evaluated).mean < 0.5, "other actions are not predicted"


@pytest.mark.slow
def test_scores_do_not_depend_on_the_order_of_the_action_map(scenes):
    model = task_of(scenes).build()
    reversed_map = replace(scenes, actions=dict(reversed(scenes.actions.items())))
    predictions, other = (detect(model, part, settings_of(), MODEL, ["true"])["true"] for part in (scenes, reversed_map))
    pd.testing.assert_frame_equal(other, predictions)


def test_a_batch_is_a_function_of_the_step(scenes):
    whole = task_of(scenes).batch(3, range(4))
    again = task_of(scenes).batch(3, range(4))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    parts = [task_of(scenes).batch(3, range(start, start + 2)) for start in (0, 2)]
    assert torch.equal(torch.cat([part["video"] for part in parts]), whole["video"])
    for name in ("boxes", "label"):
        assert torch.equal(torch.cat([part[name][part["there"]] for part in parts]), whole[name][whole["there"]])
    assert not torch.equal(task_of(scenes, seed=1).batch(3, range(4))["video"], whole["video"])
    assert (whole["video"].shape, whole["video"].dtype) == ((4, 3, 8, 24, 24), torch.uint8)


def test_the_loss_is_the_mean_over_people_and_classes(scenes):
    task = task_of(scenes)
    batch = task.batch(0, range(4))
    model = ActionDetector(MODEL.dimensions, MODEL.clip, 8, init_scale=1.0).eval()
    with torch.no_grad():
        scores = model(batch["video"], batch["boxes"])
        loss = task.loss(model, batch, torch.device("cpu"))
    terms = []
    for clip, person in batch["there"].nonzero().tolist():
        for score, does in zip(scores[clip, person].tolist(), batch["label"][clip, person].tolist(), strict=True):
            probability = 1 / (1 + math.exp(-score))
            terms.append(-math.log(probability if does else 1 - probability))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert task.weight(batch) == len(terms) / 8 == batch["there"].sum()


def trained(task: DetectTask, folder: Path, compute: Compute = CPU) -> dict[str, torch.Tensor]:
    return train(task, folder, compute, progress=False).model.state_dict()


@pytest.mark.slow
def test_workers_and_interruptions_do_not_change_the_result(scenes, tmp_path):
    expected = trained(task_of(scenes), tmp_path / "plain")
    workers = trained(task_of(scenes), tmp_path / "workers", CPU.model_copy(update={"workers": 2}))
    task, stopped = task_of(scenes), []
    task.loss = lambda *batch: stopped.append(1) or (_stop() if len(stopped) == 3 else DetectTask.loss(task, *batch))
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "killed", CPU.model_copy(update={"checkpoint_every": 1}), progress=False)
    resumed = trained(task_of(scenes), tmp_path / "killed", CPU.model_copy(update={"checkpoint_every": 1}))
    for name, value in expected.items():
        assert torch.equal(value, workers[name])
        assert torch.equal(value, resumed[name])


def _stop() -> None:
    raise KeyboardInterrupt


def test_accumulation_changes_only_rounding(scenes, tmp_path):
    """Clips have different numbers of people, so micro-batches are weighted by them."""
    one, two = (trained(task_of(scenes, steps=1, drop_path=0.0, accumulation=parts), tmp_path / str(parts)) for parts in (1, 2))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.fixture
def lists(tmp_path) -> SceneSettings:
    """Two videos of different shapes and frame rates."""
    (tmp_path / "videos").mkdir()
    encode_mp4(np.stack([drawn(n, 64, 48) for n in range(36)]), tmp_path / "videos" / "a.mp4", rate=12)
    encode_mp4(np.stack([drawn(n, 50, 90) for n in range(75)]), tmp_path / "videos" / "b.mp4", rate=25)
    (tmp_path / "actions.csv").write_text("1,sit\n2,stand\n")
    box, other = "0.1,0.2,0.5,0.9", "0.4,0.1,0.9,0.6"
    (tmp_path / "boxes.csv").write_text("".join(f"{name},{second},{box},{second},1\n" for second in (1, 2) for name in "ab"))
    persons = [f"{name},1,{box},,0.9\n{name},1,{other},,0.5\n" for name in "ab"]
    (tmp_path / "persons.csv").write_text("".join(persons))
    split = {"boxes": "boxes.csv", "persons": "persons.csv"}
    return SceneSettings(lists=SceneLists(root=str(tmp_path), actions="actions.csv", train=split, validation=split))


@pytest.fixture
def model() -> ActionDetector:
    torch.manual_seed(0)
    return ActionDetector(MODEL.dimensions, MODEL.clip, 2, init_scale=1.0)


@pytest.mark.slow
def test_training_and_testing_on_videos_of_different_shapes_and_rates(lists, tmp_path):
    settings, scenes = settings_of(lists, test_short_side=32), open_scenes(lists, "train")
    learned = train(DetectTask(MODEL, settings, scenes, None, 0), tmp_path / "run", CPU, progress=False).model
    predictions = detect(learned, scenes, settings, MODEL)["persons"]
    assert predictions.groupby(["video", "timestamp"]).size().to_dict() == {("a", 1.0): 2, ("b", 1.0): 2}
    assert np.allclose(predictions[["x1", "y1", "x2", "y2"]], [0.1, 0.2, 0.5, 0.9])
    assert predictions.action_id.tolist() == [1, 2] * 2
    assert predictions.score.between(0, 0.9).all()


class Brightness(torch.nn.Module):
    """Replaces a detector: the first class is a bright box in the key frame, the second a dark one."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, video, boxes):
        middle = video[:, :, video.shape[2] // 2].float().mean(1, keepdim=True) / 255
        inside = roi_align(middle, list(boxes), (3, 3), sampling_ratio=4).mean((1, 2, 3)).view(boxes.shape[:2])
        return torch.stack([20 * (inside - 0.5), 20 * (0.5 - inside)], 2)


def with_square(frames: int, width: int, height: int, box: tuple[float, ...], at: int) -> np.ndarray:
    """A black video with a white square: at `box` in the frame `at`, at another location in all other frames."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[:, : height // 4, : width // 4] = 255
    x1, y1, x2, y2 = (round(edge * size) for edge, size in zip(box, (width, height) * 2, strict=True))
    video[at] = 0
    video[at, y1:y2, x1:x2] = 255
    return video


def test_boxes_and_pixels_stay_aligned_for_all_video_shapes(tmp_path):
    """Bright boxes are found by brightness, so frame, location, scaling and padding must be right."""
    (tmp_path / "videos").mkdir()
    box, other = (0.5, 0.4, 0.9, 0.8), "0.05,0.05,0.35,0.3"
    for name, size, at, rate in (("a", (64, 48), 12, 12), ("b", (50, 90), 25, 25), ("c", (120, 52), 10, 10)):
        encode_mp4(with_square(3 * rate, *size, box, at), tmp_path / "videos" / f"{name}.mp4", rate=rate)
    (tmp_path / "actions.csv").write_text("1,bright\n2,dark\n")
    corners = ",".join(map(str, box))
    boxes = [f"{name},1,{corners},1,1\n{name},1,{other},2,2\n" for name in "abc"]
    persons = [f"{name},1,{other},,0.9\n{name},1,{corners},,0.95\n" for name in "abc"]
    (tmp_path / "boxes.csv").write_text("".join(boxes))
    (tmp_path / "persons.csv").write_text("".join(persons))
    split = {"boxes": "boxes.csv", "persons": "persons.csv"}
    lists = SceneSettings(lists=SceneLists(root=str(tmp_path), actions="actions.csv", train=split, validation=split))
    scenes = open_scenes(lists, "validation")
    predictions = detect(Brightness(), scenes, settings_of(lists, test_short_side=32), MODEL, ["true", "persons"])
    for table in predictions.values():
        assert frame_map(scenes.truth, table, scenes.evaluated).mean == 1.0
        bright = np.isclose(table.x1, 0.5)
        assert table.score[bright == (table.action_id == 1)].min() > 0.8
        assert table.score[bright != (table.action_id == 1)].max() < 0.2
        assert table.groupby("video").size().tolist() == [4, 4, 4]


def test_a_clip_is_read_and_encoded_once_for_both_kinds_of_boxes(lists, model):
    scenes, settings = open_scenes(lists, "validation"), settings_of(lists, test_short_side=32, person_score=0.0)
    alone = {kind: detect(model, scenes, settings, MODEL, [kind])[kind] for kind in ("true", "persons")}
    read, encoded, request, maps = [], [], scenes._request, model.encoder.maps
    scenes._request = lambda index, *shape: read.append(index) or request(index, *shape)
    model.encoder.maps = lambda video: encoded.append(len(video)) or maps(video)
    together = detect(model, scenes, settings, MODEL, ["true", "persons"])
    assert (read, sum(encoded)) == ([0, 1, 2, 3], 4)
    for kind, table in together.items():
        pd.testing.assert_frame_equal(table, alone[kind], atol=1e-6)
    assert [len(table) for table in together.values()] == [4 * 2, 4 * 2]


@pytest.mark.slow
def test_crops_without_people_give_no_gradient(lists, tmp_path):
    """People smaller than a pixel are dropped, so the loss of this batch has no terms."""
    root = Path(lists.lists.root)
    (root / "boxes.csv").write_text("a,1,0.5,0.5,0.501,0.501,1,1\nb,1,0.5,0.5,0.501,0.501,1,1\n")
    settings, scenes = settings_of(lists, weight_decay=0.0), open_scenes(lists, "train", with_persons=False)
    task = DetectTask(MODEL, settings, scenes, None, 0)
    batch = task.batch(0, range(4))
    assert (batch["boxes"].shape, task.weight(batch)) == ((4, 0, 4), 0.0)
    with seeded(0, "initial weights"):
        before = task.build().state_dict()
    after = trained(task, tmp_path / "run")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_scores_do_not_depend_on_the_batch(lists, model):
    settings, scenes = settings_of(lists, test_short_side=32, person_score=0.0), open_scenes(lists, "validation")
    together, alone = (detect(model, scenes, settings, MODEL, batch=size)["persons"] for size in (16, 1))
    pd.testing.assert_frame_equal(together, alone, atol=1e-6)
    assert len(together) == 4 * 2
    assert together.video.tolist() == ["a"] * 4 + ["b"] * 4


def test_person_score_is_a_threshold_and_a_factor(lists, model):
    settings, scenes = settings_of(lists), open_scenes(lists, "validation")
    assert len(detect(model, scenes, settings, MODEL)["persons"]) == 2 * 2, "0.5 is below 0.8"
    loose = settings_of(lists, person_score=0.0)
    before = detect(model, scenes, loose, MODEL)["persons"]
    scenes.persons = scenes.persons.assign(score=1.0)
    after = detect(model, scenes, loose, MODEL)["persons"]
    factors = np.repeat([0.9, 0.5, 0.9, 0.5], 2)
    assert np.allclose(before.score, after.score * factors, rtol=1e-5)
    corners = before.loc[0, ["x1", "y1", "x2", "y2"]].tolist()
    assert corners == pytest.approx([0.1, 0.2, 0.5, 0.9]), "tables have the original boxes, not the enlarged ones"


def test_missing_person_boxes_are_an_error(lists, model):
    scenes = open_scenes(lists, "validation", with_persons=False)
    with pytest.raises(ListError, match="persons"):
        detect(model, scenes, settings_of(lists), MODEL)
    assert len(detect(model, scenes, settings_of(lists), MODEL, ["true"])["true"]) == 4 * 2


def test_boxes_are_enlarged_before_scoring(lists, model):
    scenes = open_scenes(lists, "validation")
    seen = []
    forward = model.forward
    model.forward = lambda video, boxes: seen.append((video.shape, boxes)) or forward(video, boxes)
    detect(model, scenes, settings_of(lists, test_short_side=48), MODEL)
    (shape, boxes), (other, _) = seen
    assert torch.allclose(boxes[0, 0], torch.tensor([0.08 * 64, 0.1825 * 48, 0.52 * 64, 0.9175 * 48]), atol=1e-4)
    # 48 x 64 and (from 90 x 50) 86 x 48 pixels, padded to multiples of 6.
    assert (tuple(shape[-2:]), tuple(other[-2:])) == ((48, 66), (90, 48))


def test_a_missing_video_stops_the_evaluation(lists, model):
    scenes = open_scenes(lists, "validation")
    (Path(lists.lists.root) / "videos" / "b.mp4").unlink()
    with pytest.raises(MissingVideos, match=r"1 of 4 key frames cannot be read, so evaluation stopped:\n.*b.mp4.*") as caught:
        detect(model, scenes, settings_of(lists), MODEL)
    assert "exclude these key frames" in str(caught.value)
    with pytest.raises(MissingVideos, match=r"2 of 4 key frames cannot be read.*\n.*b.mp4.* \(2 key frames\)") as caught:
        detect(model, scenes, settings_of(lists), MODEL, ["true"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it can be sent to another process"

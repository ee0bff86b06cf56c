"""Detection of people in key frames: custom detectors, torchvision's detector, and missing weights."""

from urllib.error import URLError

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from vmae_lab.data.ava import Scenes, SceneSettings, open_scenes, read_person_boxes, write_person_boxes
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.motionworld.scenes import SceneWorldSettings
from vmae_lab.detection import person_detector
from vmae_lab.detection.person_detector import PUBLISHED, TorchvisionDetector, detect_people
from vmae_lab.models.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def scenes(home) -> Scenes:
    return open_scenes(SceneSettings(motionworld=SceneWorldSettings(side=32, train=5, validation=1, test=1)), "train")


def brightest(frames):
    """A detector for 32 x 32 pixels: the bright area, a box without area, a low score, and a box partly outside."""
    more, scores = [[5.0, 5, 5, 5], [1, 1, 9, 9], [-4, 8, 40, 16]], torch.tensor([0.9, 0.8, 0.01, 0.95], dtype=torch.float64)
    found = []
    for frame in frames:
        rows, columns = torch.where(frame.float().mean(0) > 80)
        bright = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        found.append((torch.cat([bright[None].float(), torch.tensor(more)]), scores))
    return found


@pytest.mark.slow
def test_people_are_detected_in_every_key_frame(scenes, tmp_path):
    table = detect_people(brightest, scenes, batch=2)
    assert table.groupby("video").size().tolist() == [2] * 5, "without low scores and boxes without area"
    assert table.score.tolist() == [0.95, 0.9] * 5, "highest score first"
    assert table.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [0, 0.25, 1, 0.5], "clipped to the frame"
    for index, (_, seen) in enumerate(table[table.score == 0.9].iterrows()):
        boxes, _ = scenes.labelled_boxes(index)
        assert boxes[:, 0].min() - 0.05 < seen.x1 < seen.x2 < boxes[:, 2].max() + 0.05, "the detector gets the key frame"
    write_person_boxes(tmp_path / "persons.csv", table)
    again = read_person_boxes(tmp_path / "persons.csv")
    assert again.drop(columns="video").to_numpy() == pytest.approx(table.drop(columns="video").to_numpy(float), abs=1e-6)
    assert again.video.tolist() == table.video.tolist()
    first = (tmp_path / "persons.csv").read_text().splitlines()[0]
    assert first == "train_00000,1,0.000000,0.250000,1.000000,0.500000,,0.950000"
    assert detect_people(lambda frames: [(torch.zeros(0, 4), torch.zeros(0)) for _ in frames], scenes).empty


def test_unreadable_key_frames_are_an_error(scenes, monkeypatch):
    read = scenes.clip

    def clip(index, *shape):
        if index in (1, 3):
            raise VideoError(scenes.name(index), "it is broken")
        return read(index, *shape)

    monkeypatch.setattr(scenes, "clip", clip)
    with pytest.raises(MissingVideos, match=r"2 of 5 .*\n.*train_00001 at 1 s.*\n.*train_00003 at 1 s.*\n.*exclude these"):
        detect_people(brightest, scenes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write a file of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save(fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict(), path)
    return path


@pytest.mark.slow
def test_torchvisions_detector_is_loaded_from_a_file_and_runs(weights):
    detector = TorchvisionDetector(weights)
    detector.model.transform.min_size = (64,)
    found = detector([torch.randint(256, (3, 48, 64), dtype=torch.uint8), torch.randint(256, (3, 64, 40), dtype=torch.uint8)])
    assert [boxes.shape[1:] for boxes, _ in found] == [(4,)] * 2
    assert not detector.model.training


def test_torchvisions_detector_returns_only_people(weights):
    """The model is replaced: it finds a person, a car and a person with known boxes and scores."""
    detector, shown = TorchvisionDetector(weights), []
    boxes, scores = torch.tensor([[1.0, 2, 30, 40], [3, 4, 20, 30], [5, 6, 10, 20]]), torch.tensor([0.9, 0.8, 0.7])

    def sees(frames):
        shown.extend(frames)
        return [
            {"boxes": boxes + index, "scores": scores / (index + 1), "labels": torch.tensor([1, 3, 1])} for index in range(2)
        ]

    detector.model = sees
    first, second = detector([torch.full((3, 48, 64), 255, dtype=torch.uint8), torch.full((3, 64, 40), 51, dtype=torch.uint8)])
    assert first[0].tolist() == [[1, 2, 30, 40], [5, 6, 10, 20]]
    assert second[0].tolist() == [[2, 3, 31, 41], [6, 7, 11, 21]]
    assert [scores.tolist() for _, scores in (first, second)] == [pytest.approx([0.9, 0.7]), pytest.approx([0.45, 0.35])]
    assert [float(frame.max()) for frame in shown] == [1.0, pytest.approx(0.2)], "colors from 0 to 1, as in its training"


def test_missing_weights_are_reported(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"nowhere.pth: No such file or directory.*https://"):
        TorchvisionDetector(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(CheckpointError, match=r"cannot read .*text.pth"):
        TorchvisionDetector(tmp_path / "text.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth does not fit this model; .* missing"):
        TorchvisionDetector(tmp_path / "other.pth")

    def refuse(*args, **more):
        raise URLError("no network")

    monkeypatch.setattr(type(PUBLISHED), "get_state_dict", refuse)
    with pytest.raises(CheckpointError, match=r"cannot download .* from https://.*pth: .*no network.* pass its path"):
        TorchvisionDetector()
    assert person_detector.PERSON == 1

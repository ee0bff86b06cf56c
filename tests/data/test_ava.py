"""AVA-style lists: the frames of clips around key frames, and the faults of lists."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from made_videos import drawn, shown, write_video
from PIL import Image
from scipy.stats import chi2_contingency, kruskal
from torchvision.ops import box_iou

from vmae_lab.data.ava import (
    SceneLists,
    Scenes,
    SceneSettings,
    open_scenes,
    read_detections,
    read_excluded,
    read_ground_truth,
    read_label_map,
    read_person_boxes,
    write_detections,
)
from vmae_lab.data.decoding import VideoError, VideoFile
from vmae_lab.data.frame_sampling import Around
from vmae_lab.data.motionworld.dataset import RENDERER_VERSION
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.scenes import APART, SceneWorldSettings, render_scene
from vmae_lab.data.motionworld.writer import encode_mp4
from vmae_lab.data.video_lists import ListError

SMALL = SceneWorldSettings(side=32, train=5, validation=2, test=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two videos of different size and frame rate, and a folder of pictures. Frames show their numbers."""
    root = tmp_path_factory.mktemp("ava")
    (root / "videos" / "c").mkdir(parents=True)
    encode_mp4(np.stack([drawn(n, 64, 48) for n in range(60)]), root / "videos" / "a.mp4", rate=12)  # 5 s
    encode_mp4(np.stack([drawn(n, 96, 128) for n in range(100)]), root / "videos" / "b.mp4", rate=25)  # 4 s
    for number in range(60):
        Image.fromarray(drawn(number, 80, 60)).save(root / "videos" / "c" / f"c_{number + 1:06d}.jpg", quality=95)  # 3 s at 20
    for hidden in ("c/._c_000061.jpg", "._a.mp4", "c/.DS_Store"):  # macOS writes these on foreign file systems
        (root / "videos" / hidden).write_bytes(b"\0\5\x16\7")
    (root / "actions.csv").write_text("id,name\n3,sit\n7,stand\n9,walk\n")
    return root


def opened(root: Path, boxes: str, split: str = "train", actions: str = "actions.csv", **more) -> Scenes:
    (root / "boxes.csv").write_text(boxes)
    for name in ("excluded", "persons"):
        if name in more:
            (root / f"{name}.csv").write_text(more[name])
            more[name] = f"{name}.csv"
    files = {"boxes": "boxes.csv", **{name: more.pop(name) for name in ("excluded", "persons") if name in more}}
    lists = SceneLists(
        root=str(root), actions=actions, train=files, validation=files, first_second=900, folder_rate=20,
        frame_pattern="{video}_{:06d}.jpg", **more,
    )  # fmt: skip
    return open_scenes(SceneSettings(lists=lists), split)


BOX = "0.1,0.2,0.5,0.9"


def frames_of(scenes: Scenes, index: int, frames: int = 4, stride: int = 2) -> list[int]:
    return shown(scenes.clip(index, frames, stride, 1000).permute(1, 2, 3, 0).numpy())


def test_a_clip_is_centered_on_its_key_frame(root):
    scenes = opened(root, "".join(f"{name},902,{BOX},7,1\n" for name in "abc"))
    # 2 s after the first frame, at 12, 25 and 20 fps. Two of the four frames are before the key frame.
    assert [frames_of(scenes, index) for index in range(3)] == [[20, 22, 24, 26], [46, 48, 50, 52], [36, 38, 40, 42]]
    sizes = [tuple(scenes.clip(index, 2, 1, 1000).shape[-2:]) for index in range(3)]
    assert sizes == [(48, 64), (128, 96), (60, 80)]
    assert tuple(scenes.clip(1, 2, 1, 48).shape[-2:]) == (64, 48), "a smaller short side, the same aspect ratio"


def test_the_stride_can_be_in_time(root):
    """Two frames at 10 fps are 0.2 s: 2.4 frames at 12 fps, 5 at 25, 4 at 20."""
    scenes = opened(root, "".join(f"{name},902,{BOX},7,1\n" for name in "abc"), rate=10)
    assert [frames_of(scenes, index) for index in range(3)] == [[19, 22, 24, 26], [40, 45, 50, 55], [32, 36, 40, 44]]


def test_the_first_and_last_frames_are_repeated(root):
    scenes = opened(root, f"a,900,{BOX},7,1\na,904.9,{BOX},7,1\n")
    assert frames_of(scenes, 0) == [0, 0, 0, 2]
    assert frames_of(scenes, 1) == [55, 57, 59, 59]


def test_positions_between_frames_are_rounded_up():
    """With a step of 1.5, every other position is a half. No frame is repeated."""
    assert Around(10, 8, 1.5)(60) == [4, 6, 7, 9, 10, 12, 13, 15]
    assert Around(10.5, 4, 1)(60) == [9, 10, 11, 12]


def test_several_clips_equal_single_clips(root):
    """Clips are in order, cached or not. A broken one is its error."""
    scenes = opened(root, "".join(f"{name},902,{BOX},7,1\n" for name in "abc"))
    alone = [scenes.clip(index, 4, 2, 48) for index in range(3)]
    scenes.clip(1, 4, 2, 48, keep=True)
    for rows in ([0, 1, 2], [2, 0], [1], []):
        together = list(scenes.clips(rows, 4, 2, 48))
        assert len(together) == len(rows)
        assert all(torch.equal(clip, alone[row]) for clip, row in zip(together, rows, strict=True))
    assert len(list(scenes.clips([0, 2], 4, 2, 48, keep=True))) == 2
    assert len(scenes._kept) == 3
    scenes.videos = {**scenes.videos, "c": replace(scenes.videos["c"], file=VideoFile("gone.mp4"))}
    first, last = scenes.clips([0, 2], 2, 1, 48)
    assert (first.shape[1], type(last)) == (2, VideoError)


def test_labels_have_a_row_per_person_and_a_column_per_class(root):
    other = "0.5,0.2,0.9,0.9"
    scenes = opened(root, f"a,901,{BOX},7,1\na,901,{other},3,2\na,901,{BOX},9,1\nb,901,{other},9,1\n")
    boxes, labels = scenes.labelled_boxes(0)
    assert torch.allclose(boxes, torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.5, 0.2, 0.9, 0.9]]))
    assert labels.tolist() == [[False, True, True], [True, False, False]]  # sit, stand, walk
    assert scenes.labelled_boxes(1)[1].tolist() == [[False, False, True]]
    assert scenes.name(0) == "a at 901 s"


def test_columns_are_sorted_by_class_number(root):
    (root / "unsorted.csv").write_text("id,name\n9,walk\n3,sit\n7,stand\n")
    scenes = opened(root, f"a,901,{BOX},7,1\na,901,{BOX},9,1\n", actions="unsorted.csv")
    assert scenes.labelled_boxes(0)[1].tolist() == [[False, True, True]]  # sit, stand, walk


def test_key_frames_are_from_both_lists_without_excluded_ones(root):
    scenes = opened(
        root, f"a,901,{BOX},7,1\na,902,{BOX},7,1\n", persons=f"b,901,{BOX},,0.9\na,902,{BOX},,0.8\n", excluded="a,0902\n"
    )
    assert scenes.keys.to_numpy().tolist() == [["a", 901.0], ["b", 901.0]]
    assert (len(scenes.truth), len(scenes.persons)) == (1, 1)
    boxes, labels = scenes.labelled_boxes(1)
    assert (tuple(boxes.shape), tuple(labels.shape)) == ((0, 4), (0, 3)), "the key frame has no labels"
    assert scenes.labelled == [0]


def test_fewer_classes_can_be_evaluated_than_trained(root):
    (root / "two.pbtxt").write_text('item {\n  name: "sit"\n  id: 3\n}\nitem {\n  name: "walk"\n  id: 9\n}\n')
    scenes = opened(root, f"a,901,{BOX},7,1\n", evaluated="two.pbtxt")
    assert (len(scenes.actions), scenes.evaluated) == (3, {3: "sit", 9: "walk"})


def test_evaluated_classes_must_be_in_the_label_map(root):
    """Names are from the label map of all classes."""
    (root / "other.csv").write_text("3,sitting down\n11,run\n12,jump\n")
    with pytest.raises(ListError, match=rf"{root}/other.csv: .*actions.csv\) has no action 11, 12"):
        opened(root, f"a,901,{BOX},7,1\n", evaluated="other.csv")
    (root / "other.csv").write_text("3,sitting down\n")
    assert opened(root, f"a,901,{BOX},7,1\n", evaluated="other.csv").evaluated == {3: "sit"}


def test_excluding_all_key_frames_is_refused(root):
    with pytest.raises(ListError, match=rf"{root}/excluded.csv excludes all key frames of {root}/boxes.csv"):
        opened(root, f"a,901,{BOX},7,1\n", excluded="a,0901\n")


def test_times_are_rounded_to_microseconds_in_both_lists(root):
    scenes = opened(root, f"a,{900 + 4 / 3},{BOX},7,1\n", persons=f"a,901.333333,{BOX},,0.9\n")
    assert scenes.keys.to_numpy().tolist() == [["a", 901.333333]]
    assert frames_of(scenes, 0, 2, 1) == [15, 16], "4/3 s at 12 fps"


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_frames_are_counted_if_the_header_does_not(root, suffix):
    """40 frames at 25 fps are 1.6 s."""
    path = write_video(root / "videos" / f"long_{suffix}.{suffix}")
    scenes = opened(root, f"{path.stem},901,{BOX},7,1\n")
    video = scenes.videos[path.stem]
    assert (video.frames, video.file.frames, video.rate) == (40, 40, pytest.approx(25, abs=0.01))
    assert frames_of(scenes, 0) == [21, 23, 25, 27]
    cause = rf"line 1: timestamp 902 is outside video '{path.stem}' in .* covers 900 to 901.6 s \(40 frames"
    with pytest.raises(ListError, match=cause):
        opened(root, f"{path.stem},902,{BOX},7,1\n")


def at_times(path: Path, times: list[int]) -> Path:
    """Write frames that are shown at `times`, in 1/100 s."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("h264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_videos_with_a_variable_frame_rate_are_refused(root, suffix):
    """The rate is first low, then high, so times do not match frames. A single dropped frame is accepted."""
    path = at_times(root / "videos" / f"slow_{suffix}.{suffix}", [*range(0, 200, 20), *range(200, 300, 4)])
    with pytest.raises(
        ListError, match=rf"line 1: {path}: frames are up to .* s off a constant frame rate; .*ffmpeg -i IN -vf"
    ):
        opened(root, f"{path.stem},901,{BOX},7,1\n")
    path = at_times(root / "videos" / f"dropped_{suffix}.{suffix}", [*range(0, 100, 4), *range(104, 200, 4)])
    assert opened(root, f"{path.stem},901,{BOX},7,1\n").videos[path.stem].rate == pytest.approx(25, abs=1)


def test_ambiguous_videos_are_refused(root):
    (root / "videos" / "twice").mkdir()
    write_video(root / "videos" / "twice.mp4")
    with pytest.raises(ListError, match=rf"video 'twice' may be {root}/videos/twice or {root}/videos/twice.mp4; "):
        opened(root, f"twice,901,{BOX},7,1\n")


def test_videos_may_be_outside_the_root(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("films")
    write_video(elsewhere / "film.mp4")
    assert frames_of(opened(root, f"film,901,{BOX},7,1\n", videos=str(elsewhere)), 0) == [21, 23, 25, 27]
    (elsewhere / "linked.mp4").symlink_to(root / "videos" / "a.mp4")
    with pytest.raises(ListError, match=rf"linked.mp4: it links to .*, outside the root {elsewhere}"):
        opened(root, f"linked,901,{BOX},7,1\n", videos=str(elsewhere))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (f"d,901,{BOX},7,1", r"there is no video 'd' in .*videos"),
        (f"broken,901,{BOX},7,1", r"the video cannot be read: .*broken.mp4"),
        (
            f"a,905,{BOX},7,1",
            r"timestamp 905 is outside video 'a' in .*, which covers 900 to 905 s \(60 frames at 12 fps",
        ),
        (f"c,903,{BOX},7,1", r"timestamp 903 is outside video 'c' in .*\(60 frames at 20 fps"),
        (f"b,899,{BOX},7,1", "timestamp 899 is outside video 'b'"),
        ("a,901,0.1,0.2,0.5,1.9,7,1", r"is not inside \[0, 1\]"),
        ("a,901,0.5,0.2,0.1,0.9,7,1", "has no area"),
        (f"a,901,{BOX},8,1", "action_id 8 is not in the label map"),
        (f"a,901,{BOX}", "6 columns; expected 8"),
    ],
)
def test_a_bad_line_is_reported_with_file_line_and_cause(root, line, cause):
    (root / "videos" / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with pytest.raises(ListError, match=rf"{root}/boxes.csv: 2 bad lines; line 2: .*{cause}.*line 4: "):
        opened(root, f"a,901,{BOX},7,1\n{line}\nb,901,{BOX},7,1\n{line}\n")


def test_the_list_of_persons_is_checked_against_videos(root):
    with pytest.raises(ListError, match=rf"{root}/persons.csv: 1 bad line; line 1: timestamp 990 is outside video 'a'"):
        opened(root, f"a,901,{BOX},7,1\n", persons=f"a,990,{BOX},,0.9\n")


def test_missing_files_are_named(root, tmp_path):
    with pytest.raises(ListError, match=r"cannot read .*nowhere.csv"):
        opened(root, f"a,901,{BOX},7,1\n", evaluated="nowhere.csv")
    with pytest.raises(ListError, match=r"scenes.lists.videos: there is no folder .*films"):
        opened(root, f"a,901,{BOX},7,1\n", videos="films")
    with pytest.raises(ListError, match=r"scenes\.lists\.test"):
        opened(root, f"a,901,{BOX},7,1\n", split="test")
    with pytest.raises(ListError, match=r"boxes.csv: the list is empty"):
        opened(root, "")


@pytest.mark.slow
def test_embedded_scenes_are_opened_like_lists(home):
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        scenes = open_scenes(SceneSettings(motionworld=SMALL), split)
        assert len(scenes) == count
        assert list(scenes.actions.values()) == list(ACTIONS)
        assert scenes.clip(0, 8, 2, 32).shape == (3, 8, 32, 32)
        assert len(scenes.persons) > 0


@pytest.mark.slow
def test_scenes_are_deterministic(home):
    first, second = (render_scene(SMALL, "train", 1) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], render_scene(SMALL, "test", 1)[0])
    scenes = open_scenes(SceneSettings(motionworld=SMALL), "train")
    boxes, labels = scenes.labelled_boxes(1)
    assert np.allclose(boxes, first[1], atol=1e-4), "written with four decimals"
    assert [[ACTIONS[i] for i in np.flatnonzero(row)] for row in labels] == [
        sorted(done, key=ACTIONS.index) for done in first[2]
    ]


def test_the_version_of_the_renderer_is_in_the_fingerprint(monkeypatch):
    before = SMALL.fingerprint
    assert SceneWorldSettings.versions["things"] == RENDERER_VERSION
    monkeypatch.setitem(SceneWorldSettings.versions, "things", 99)
    assert SMALL.fingerprint != before


@pytest.fixture(scope="module")
def many() -> list[tuple[np.ndarray, list[tuple[str, ...]]]]:
    """Boxes and actions of many scenes."""
    settings = SceneWorldSettings(side=32, sources=("digits",), seed=3)
    return [render_scene(settings, "train", index)[1:] for index in range(250)]


@pytest.mark.slow
def test_actors_are_inside_the_frame_and_do_not_overlap(many):
    for boxes, done in many:
        assert 1 <= len(boxes) == len(done) <= 3
        assert ((boxes >= 0) & (boxes <= 1)).all()
        overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).fill_diagonal_(0)
        assert (overlaps <= APART).all()
    assert {len(boxes) for boxes, _ in many} == {1, 2, 3}
    assert {len(actions) for _, done in many for actions in done} == {1, 2}
    assert any(len(set(done)) > 1 for _, done in many), "actors with different actions"


@pytest.mark.slow
def test_the_key_frame_does_not_reveal_the_action(many):
    """Position, size and number of actors in the key frame are independent of the action (tests at 0.1%)."""
    boxes = np.concatenate([boxes for boxes, _ in many])
    first = np.array([ACTIONS.index(actions[0]) for _, done in many for actions in done])
    company = np.array([len(done) for _, done in many for _ in done])
    for name, values in (
        ("x", boxes[:, [0, 2]].mean(1)), ("y", boxes[:, [1, 3]].mean(1)), ("size", boxes[:, 2] - boxes[:, 0]),
    ):  # fmt: skip
        assert kruskal(*(values[first == action] for action in range(8))).pvalue > 0.001, name
    table = [[np.sum((first == action) & (company == size)) for size in (1, 2, 3)] for action in range(8)]
    assert chi2_contingency(table).pvalue > 0.001


# ---------------------------------------------------------------------------------------------------------------------
# Csv files and label maps
# ---------------------------------------------------------------------------------------------------------------------

GOOD = "vid,0902,0.1,0.2,0.5,0.9,12,3"


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "gt.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_ground_truth_is_read(written):
    table = read_ground_truth(written(f"{GOOD}\nvid,902.5,0,0,1,1,80,\n"), {12, 80})
    assert table.loc[0].tolist() == ["vid", 902.0, 0.1, 0.2, 0.5, 0.9, 12, 3]
    assert table.loc[1, ["timestamp", "person_id"]].tolist() == [902.5, -1]
    assert len(read_ground_truth(written(""))) == 0


def test_ground_truth_without_person_ids_is_read(written):
    assert read_ground_truth(written(GOOD.rsplit(",", 1)[0])).person_id.tolist() == [-1]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("vid,0902,0.1,0.2,0.5,0.9", r"6 columns; expected 8: video, timestamp, x1"),
        (GOOD + ",1,2", "10 columns"),
        ("", "1 column;"),
        (",0902,0.1,0.2,0.5,0.9,12,3", "the name of the video is empty"),
        ("vid,soon,0.1,0.2,0.5,0.9,12,3", "timestamp 'soon'"),
        ("vid,nan,0.1,0.2,0.5,0.9,12,3", "timestamp 'nan'"),
        ("vid,0902,0.1,0.2,0.5,1.1,12,3", r"box x1 0\.1, y1 0\.2, x2 0\.5, y2 1\.1 is not inside \[0, 1\]"),
        ("vid,0902,-0.1,0.2,0.5,0.9,12,3", "not inside"),
        ("vid,0902,0.5,0.2,0.1,0.9,12,3", r"has no area; expected x1 < x2 and y1 < y2"),
        ("vid,0902,0.1,0.2,0.5,0.9,99,3", "action_id 99 is not in the label map"),
        ("vid,0902,0.1,0.2,0.5,0.9,1.5,3", "action_id '1.5'"),
        ("vid,0902,0.1,0.2,0.5,0.9,,3", "action_id ''"),
    ],
)
def test_a_malformed_line_is_reported_with_its_number_and_cause(written, line, cause):
    path = written(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ListError, match=rf"{path}: 1 bad line; line 2: .*{cause}"):
        read_ground_truth(path, {12})


def test_detections_are_not_changed_when_read(written):
    """Predicted boxes may be outside the frame or without area. The evaluation handles them."""
    table = read_detections(written("vid,0902,-0.1,0.5,1.2,0.2,12,0.9"))
    assert table.loc[0, ["x1", "y2", "score"]].tolist() == [-0.1, 0.2, 0.9]
    with pytest.raises(ListError, match="line 1: score 'high'"):
        read_detections(written("vid,0902,0.1,0.2,0.5,0.9,12,high"))


def test_times_survive_a_round_trip(written, tmp_path):
    """4/3 s has no finite decimal form. Times are compared as they are in the file, rounded to microseconds."""
    truth = read_ground_truth(written("vid,1.3333333333333333,0.1,0.2,0.5,0.9,12,3\nvid,0902,0.1,0.2,0.5,0.9,12,3\n"))
    detections = truth.assign(score=0.5, timestamp=[4 / 3, 902.0])
    write_detections(tmp_path / "detections.csv", detections)
    assert [line.split(",")[1] for line in (tmp_path / "detections.csv").read_text().splitlines()] == ["1.333333", "902"]
    assert read_detections(tmp_path / "detections.csv").timestamp.tolist() == truth.timestamp.tolist()
    write_detections(tmp_path / "detections.csv", detections.assign(timestamp=[-1e-9, 1234567.8900001]))
    assert read_detections(tmp_path / "detections.csv").timestamp.tolist() == [0.0, 1234567.89]


def test_byte_order_marks_and_blank_lines_are_skipped(written):
    assert len(read_ground_truth(written(f"\ufeff{GOOD}\r\n{GOOD}\r\n\r\n \n"))) == 2
    assert read_ground_truth(written(f"\ufeff{GOOD}")).video.tolist() == ["vid"]
    name = "one\u2028name"  # `str.splitlines` would split here
    assert read_ground_truth(written(GOOD.replace("vid", name))).video.tolist() == [name]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("vid,0902,0.1,0.2,0.5,1.002,,0.9", r"box .* y2 1\.002 is not inside \[0, 1\]"),
        ("vid,0902,-0.1,0.2,0.5,0.9,,0.9", "is not inside"),
        ("vid,0902,10,20,50,90,,0.9", "is not inside"),
        ("vid,0902,0.1,0.2,0.5,0.9,,99", "score 99 is not between 0 and 1"),
        ("vid,0902,0.1,0.2,0.5,0.9,,-0.5", "score -0.5 is not between 0 and 1"),
        ("vid,0902,0.1,0.2,0.5,0.9,,inf", "score 'inf'"),
        ("vid,0902,1.0002,0.2,1.0004,0.9,,0.9", "has no area"),
    ],
)
def test_invalid_person_boxes_are_refused(written, line, cause):
    with pytest.raises(ListError, match=rf"1 bad line; line 2: .*{cause}"):
        read_person_boxes(written(f"vid,0902,0.1,0.2,0.5,0.9,,0.9\n{line}\n"))


def test_person_boxes_are_clipped_within_a_tolerance(written):
    table = read_person_boxes(written("vid,0902,-0.0005,0.2,0.5,1.0004,,1.0001"))
    assert table.loc[0, ["x1", "y1", "x2", "y2", "score"]].tolist() == [0, 0.2, 0.5, 1, 1]
    assert read_detections(written("vid,0902,0.1,0.2,0.5,0.9,12,-7.5")).score.tolist() == [-7.5], (
        "scores of models may have any range"
    )


def test_the_action_of_person_boxes_is_ignored(written):
    table = read_person_boxes(written("vid,0902,0.1,0.2,0.5,0.9,,0.99"))
    assert table.columns.tolist() == ["video", "timestamp", "x1", "y1", "x2", "y2", "score"]
    with pytest.raises(ListError, match=r"line 1: box .* has no area"):
        read_person_boxes(written("vid,0902,0.5,0.2,0.5,0.9,,0.99"))


def test_excluded_key_frames(written):
    assert read_excluded(written("vid,0903\n")).values.tolist() == [["vid", 903.0]]
    with pytest.raises(ListError, match="line 1: 1 column; expected 2"):
        read_excluded(written("vid\n"))


def test_label_maps(written):
    pbtxt = 'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\nitem {\n  name: "sit"\n  id: 11\n}\n'
    assert read_label_map(written(pbtxt, "map.pbtxt")) == {1: "bend/bow (at the waist)", 11: "sit"}
    assert read_label_map(written("id,name\n1,bend, bow\n2,sit\n", "map.csv")) == {1: "bend, bow", 2: "sit"}
    for text, name, cause in [
        ("item { id: 1 }", "map.pbtxt", "item 1 lacks an id or a name"),
        ("", "map.pbtxt", "has no actions"),
        ("1,a\n1,b", "map.csv", "several .* number 1: lines 1, 2"),
        ("1,a\nb", "map.csv", "entry 2 'b' is not a number and a name"),
    ]:
        with pytest.raises(ListError, match=cause):
            read_label_map(written(text, name))


SAID = r'"say \"{hi}\" # loud"'


@pytest.mark.parametrize(
    "text",
    [
        f'item {{ name: "sit" id: 1 }} item {{ id: 2 name: {SAID} }}',
        f"# item {{ id: 5 }}\nitem {{\n  name: 'sit'  # {{ id: 3 }}\n  id: 1\n}}\nitem: <id: 2, name: {SAID}>\n",
        '\ufefflabel_map: {\r\n label {\r\n name: "sit"; label_id: 1\r\n label_type: PERSON_MOVEMENT }\r\n'
        f'label {{ label_id:2 name:{SAID} keypoints {{ id: 7 name: "k" }} }} }}',
        f'item {{ name: "sit" id: 1 display_name: "Sit" }} item {{ id: 2 display_name: {SAID} }}',
    ],
)
def test_label_maps_in_all_forms_of_pbtxt(written, text):
    assert read_label_map(written(text, "map.pbtxt")) == {1: "sit", 2: 'say "{hi}" # loud'}


@pytest.mark.parametrize(
    ("text", "name", "causes"),
    [
        (
            'item {\n id: 1 name: "a"\n}\nitem {\n name: "b" }\nitem { id: 3 }',
            "map.pbtxt",
            ["2 faults", "line 4: item 2", "line 6: item 3"],
        ),
        (
            'item { id: 1 name: "a" }\nitem { id: 2\n name: "b" }\nitem { id: 1 name: "c" }',
            "map.pbtxt",
            ["number 1", "lines 1, 4"],
        ),
        ('item {\n id: 1 name: "a"\n', "map.pbtxt", ["line 1: item is not closed"]),
        ('item { id: 1 name: "a }\n', "map.pbtxt", ['line 1: unmatched "']),
        ('item { id: 1 name: "a" }\n}\n', "map.pbtxt", ["line 2: unmatched }"]),
        ("# id,name\n\n1,a\n# 1,b\n2\nx,c\n", "map.csv", ["2 faults", "line 5: ", "line 6: "]),
    ],
)
def test_label_maps_with_faults_name_their_lines(written, text, name, causes):
    with pytest.raises(ListError) as caught:
        read_label_map(written(text, name))
    assert all(cause in str(caught.value) for cause in causes), caught.value


def test_comments_are_skipped_but_counted_in_line_numbers(written):
    assert read_excluded(written("# ignored\nvid,0903\n#vid,0904\n")).values.tolist() == [["vid", 903.0]]
    table = read_ground_truth(written(f"# video,timestamp\n{GOOD}\n"))
    assert len(table) == 1
    with pytest.raises(ListError, match=r"1 bad line; line 3: .*action_id 'x'"):
        read_ground_truth(written(f"# video,timestamp\n{GOOD}\nvid,0902,0.1,0.2,0.5,0.9,x,3\n"))


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ListError, match=r"cannot read .*none\.csv: No such file"):
        read_ground_truth(tmp_path / "none.csv")

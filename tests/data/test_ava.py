"""Key frames of AVA-style lists: the right frames of any video, and everything wrong with a list told before it is used."""

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

from vmae_lab.data.ava import SceneLists, Scenes, SceneSettings, open_scenes
from vmae_lab.data.decoding import VideoError, VideoFile
from vmae_lab.data.frame_sampling import Around
from vmae_lab.data.motionworld.dataset import encode_mp4
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.scenes import APART, SceneWorldSettings, _overlap, render_scene
from vmae_lab.data.video_lists import ListError

SMALL = SceneWorldSettings(side=32, train=5, validation=2, test=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two files of other sizes and rates, and a folder of pictures; frames show their numbers."""
    root = tmp_path_factory.mktemp("ava")
    (root / "videos" / "c").mkdir(parents=True)
    encode_mp4(np.stack([drawn(n, 64, 48) for n in range(60)]), root / "videos" / "a.mp4", rate=12)  # 5 s
    encode_mp4(np.stack([drawn(n, 96, 128) for n in range(100)]), root / "videos" / "b.mp4", rate=25)  # 4 s
    for number in range(60):
        Image.fromarray(drawn(number, 80, 60)).save(root / "videos" / "c" / f"c_{number + 1:06d}.jpg", quality=95)  # 3 s at 20
    for hidden in ("c/._c_000061.jpg", "._a.mp4", "c/.DS_Store"):  # what macOS leaves on other file systems
        (root / "videos" / hidden).write_bytes(b"\0\5\x16\7")
    (root / "actions.csv").write_text("id,name\n3,sit\n7,stand\n9,walk\n")
    return root


def opened(root: Path, boxes: str, split: str = "train", actions: str = "actions.csv", **more) -> Scenes:
    (root / "boxes.csv").write_text(boxes)
    for name in ("excluded", "persons"):
        if name in more:
            (root / f"{name}.csv").write_text(more[name])
            more[name] = f"{name}.csv"
    own = {"boxes": "boxes.csv", **{name: more.pop(name) for name in ("excluded", "persons") if name in more}}
    lists = SceneLists(
        root=str(root), actions=actions, train=own, validation=own, first_second=900, folder_rate=20,
        frame_pattern="{video}_{:06d}.jpg", **more,
    )  # fmt: skip
    return open_scenes(SceneSettings(lists=lists), split)


BOX = "0.1,0.2,0.5,0.9"


def frames_of(scenes: Scenes, index: int, frames: int = 4, stride: int = 2) -> list[int]:
    return shown(scenes.clip(index, frames, stride, 1000).permute(1, 2, 3, 0).numpy())


def test_a_clip_is_centred_on_its_key_frame_whatever_the_size_and_rate(root):
    scenes = opened(root, "".join(f"{name},902,{BOX},7,1\n" for name in "abc"))
    # 2 s after the first frame, at 12, 25 and 20 frames a second; two of four frames come before the key frame.
    assert [frames_of(scenes, index) for index in range(3)] == [[20, 22, 24, 26], [46, 48, 50, 52], [36, 38, 40, 42]]
    sizes = [tuple(scenes.clip(index, 2, 1, 1000).shape[-2:]) for index in range(3)]
    assert sizes == [(48, 64), (128, 96), (60, 80)]
    assert tuple(scenes.clip(1, 2, 1, 48).shape[-2:]) == (64, 48), "shrunk to a short side, the shape kept"


def test_the_stride_can_count_in_seconds_in_place_of_frames(root):
    """Two frames at 10 a second are .2 s: 2.4 frames at 12, 5 at 25, 4 at 20."""
    scenes = opened(root, "".join(f"{name},902,{BOX},7,1\n" for name in "abc"), rate=10)
    assert [frames_of(scenes, index) for index in range(3)] == [[19, 22, 24, 26], [40, 45, 50, 55], [32, 36, 40, 44]]


def test_the_first_and_last_frame_stand_in_beyond_the_ends(root):
    scenes = opened(root, f"a,900,{BOX},7,1\na,904.9,{BOX},7,1\n")
    assert frames_of(scenes, 0) == [0, 0, 0, 2]
    assert frames_of(scenes, 1) == [55, 57, 59, 59]


def test_frames_between_which_a_place_is_are_rounded_one_way():
    """At steps of 1.5 from a whole frame on, halves come up everywhere: no two frames are the same."""
    assert Around(10, 8, 1.5)(60) == [4, 6, 7, 9, 10, 12, 13, 15]
    assert Around(10.5, 4, 1)(60) == [9, 10, 11, 12]


def test_several_clips_are_read_as_one_by_one(root):
    """In order, those kept beside those read, a broken one as its error."""
    scenes = opened(root, "".join(f"{name},902,{BOX},7,1\n" for name in "abc"))
    alone = [scenes.clip(index, 4, 2, 48) for index in range(3)]
    scenes.clip(1, 4, 2, 48, keep=True)
    for rows in ([0, 1, 2], [2, 0], [1], []):
        together = list(scenes.clips(rows, 4, 2, 48))
        assert len(together) == len(rows)
        assert all(torch.equal(one, alone[row]) for one, row in zip(together, rows, strict=True))
    assert len(list(scenes.clips([0, 2], 4, 2, 48, keep=True))) == 2
    assert len(scenes._kept) == 3
    scenes.videos = {**scenes.videos, "c": replace(scenes.videos["c"], file=VideoFile("gone.mp4"))}
    first, last = scenes.clips([0, 2], 2, 1, 48)
    assert (first.shape[1], type(last)) == (2, VideoError)


def test_people_are_rows_and_their_actions_columns(root):
    other = "0.5,0.2,0.9,0.9"
    scenes = opened(root, f"a,901,{BOX},7,1\na,901,{other},3,2\na,901,{BOX},9,1\nb,901,{other},9,1\n")
    boxes, labels = scenes.labelled_boxes(0)
    assert torch.allclose(boxes, torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.5, 0.2, 0.9, 0.9]]))
    assert labels.tolist() == [[False, True, True], [True, False, False]]  # sit, stand, walk
    assert scenes.labelled_boxes(1)[1].tolist() == [[False, False, True]]
    assert scenes.name(0) == "a at 901 s"


def test_columns_are_in_the_order_of_the_classes_numbers_however_their_map_is_sorted(root):
    (root / "unsorted.csv").write_text("id,name\n9,walk\n3,sit\n7,stand\n")
    scenes = opened(root, f"a,901,{BOX},7,1\na,901,{BOX},9,1\n", actions="unsorted.csv")
    assert scenes.labelled_boxes(0)[1].tolist() == [[False, True, True]]  # sit, stand, walk


def test_key_frames_are_those_of_both_lists_without_what_is_excluded(root):
    scenes = opened(
        root, f"a,901,{BOX},7,1\na,902,{BOX},7,1\n", persons=f"b,901,{BOX},,0.9\na,902,{BOX},,0.8\n", excluded="a,0902\n"
    )
    assert scenes.keys.to_numpy().tolist() == [["a", 901.0], ["b", 901.0]]
    assert (len(scenes.truth), len(scenes.persons)) == (1, 1)
    boxes, labels = scenes.labelled_boxes(1)
    assert (tuple(boxes.shape), tuple(labels.shape)) == ((0, 4), (0, 3)), "nobody is labelled there"
    assert scenes.labelled == [0]


def test_fewer_classes_can_be_evaluated_than_trained(root):
    (root / "two.pbtxt").write_text('item {\n  name: "sit"\n  id: 3\n}\nitem {\n  name: "walk"\n  id: 9\n}\n')
    scenes = opened(root, f"a,901,{BOX},7,1\n", evaluated="two.pbtxt")
    assert (len(scenes.actions), scenes.evaluated) == (3, {3: "sit", 9: "walk"})


def test_two_label_maps_that_do_not_fit_are_refused(root):
    """Names are those of the map of all: a class is found by one name throughout."""
    (root / "other.csv").write_text("3,sitting down\n11,run\n12,jump\n")
    with pytest.raises(ListError, match=rf"{root}/other.csv: .*actions.csv, has no action of number 11, 12"):
        opened(root, f"a,901,{BOX},7,1\n", evaluated="other.csv")
    (root / "other.csv").write_text("3,sitting down\n")
    assert opened(root, f"a,901,{BOX},7,1\n", evaluated="other.csv").evaluated == {3: "sit"}


def test_lists_of_which_nothing_is_left_are_refused(root):
    with pytest.raises(ListError, match=rf"{root}/excluded.csv excludes all key frames of {root}/boxes.csv"):
        opened(root, f"a,901,{BOX},7,1\n", excluded="a,0901\n")


def test_endless_times_are_one_key_frame_in_both_lists(root):
    scenes = opened(root, f"a,{900 + 4 / 3},{BOX},7,1\n", persons=f"a,901.333333,{BOX},,0.9\n")
    assert scenes.keys.to_numpy().tolist() == [["a", 901.333333]]
    assert frames_of(scenes, 0, 2, 1) == [15, 16], "4/3 s at 12 a second"


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_videos_whose_header_counts_no_frames_are_counted(root, suffix):
    """40 frames at 25 a second: 1.6 s."""
    path = write_video(root / "videos" / f"long_{suffix}.{suffix}")
    scenes = opened(root, f"{path.stem},901,{BOX},7,1\n")
    video = scenes.videos[path.stem]
    assert (video.frames, video.file.frames, video.rate) == (40, 40, pytest.approx(25, abs=0.01))
    assert frames_of(scenes, 0) == [21, 23, 25, 27]
    cause = rf"line 1: timestamp 902 is outside video '{path.stem}' in .* lasts from 900 to 901.6 s \(40 frames"
    with pytest.raises(ListError, match=cause):
        opened(root, f"{path.stem},902,{BOX},7,1\n")


def at_times(path: Path, times: list[int]) -> Path:
    """Frames that are shown at times of 1/100 s."""
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


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_videos_of_a_variable_rate_are_refused_with_the_remedy(root, suffix):
    """Slow first, then fast: at the mean rate, a second in is another frame. One dropped frame is no matter."""
    path = at_times(root / "videos" / f"slow_{suffix}.{suffix}", [*range(0, 200, 20), *range(200, 300, 4)])
    with pytest.raises(ListError, match=rf"line 1: {path}: its frames are up to .* s off a constant rate; .*ffmpeg -i IN -vf"):
        opened(root, f"{path.stem},901,{BOX},7,1\n")
    path = at_times(root / "videos" / f"dropped_{suffix}.{suffix}", [*range(0, 100, 4), *range(104, 200, 4)])
    assert opened(root, f"{path.stem},901,{BOX},7,1\n").videos[path.stem].rate == pytest.approx(25, abs=1)


def test_which_video_is_meant_must_be_clear(root):
    (root / "videos" / "twice").mkdir()
    write_video(root / "videos" / "twice.mp4")
    with pytest.raises(ListError, match=rf"video 'twice' may be {root}/videos/twice or {root}/videos/twice.mp4; leave one"):
        opened(root, f"twice,901,{BOX},7,1\n")


def test_videos_may_be_in_a_folder_of_their_own_elsewhere(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("films")
    write_video(elsewhere / "film.mp4")
    assert frames_of(opened(root, f"film,901,{BOX},7,1\n", videos=str(elsewhere)), 0) == [21, 23, 25, 27]
    (elsewhere / "linked.mp4").symlink_to(root / "videos" / "a.mp4")
    with pytest.raises(ListError, match=rf"a link leads out of the root {elsewhere}"):
        opened(root, f"linked,901,{BOX},7,1\n", videos=str(elsewhere))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (f"d,901,{BOX},7,1", r"there is no video 'd' in .*videos"),
        (f"broken,901,{BOX},7,1", r"the video cannot be read: .*broken.mp4"),
        (
            f"a,905,{BOX},7,1",
            r"timestamp 905 is outside video 'a' in .*, which lasts from 900 to 905 s \(60 frames at 12 a second",
        ),
        (f"c,903,{BOX},7,1", r"timestamp 903 is outside video 'c' in .*\(60 frames at 20 a second"),
        (f"b,899,{BOX},7,1", "timestamp 899 is outside video 'b'"),
        ("a,901,0.1,0.2,0.5,1.9,7,1", r"is not inside \[0, 1\]"),
        ("a,901,0.5,0.2,0.1,0.9,7,1", "has no area"),
        (f"a,901,{BOX},8,1", "action_id 8 is not in the label map"),
        (f"a,901,{BOX}", "6 columns; 8 are expected"),
    ],
)
def test_a_bad_line_is_told_with_file_line_and_cause(root, line, cause):
    (root / "videos" / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with pytest.raises(ListError, match=rf"{root}/boxes.csv: 2 bad lines; line 2: .*{cause}.*line 4: "):
        opened(root, f"a,901,{BOX},7,1\n{line}\nb,901,{BOX},7,1\n{line}\n")


def test_the_person_detectors_lines_are_checked_as_well(root):
    with pytest.raises(ListError, match=rf"{root}/persons.csv: 1 bad line; line 1: timestamp 990 is outside video 'a'"):
        opened(root, f"a,901,{BOX},7,1\n", persons=f"a,990,{BOX},,0.9\n")


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(ListError, match=r"cannot read .*nowhere.csv"):
        opened(root, f"a,901,{BOX},7,1\n", evaluated="nowhere.csv")
    with pytest.raises(ListError, match=r"scenes.lists.videos: there is no folder .*films"):
        opened(root, f"a,901,{BOX},7,1\n", videos="films")
    with pytest.raises(ListError, match="there is no test split"):
        opened(root, f"a,901,{BOX},7,1\n", split="test")
    with pytest.raises(ListError, match=r"boxes.csv: the list is empty"):
        opened(root, "")


def test_the_embedded_scenes_are_lists_like_any_others(home):
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        scenes = open_scenes(SceneSettings(motionworld=SMALL), split)
        assert len(scenes) == count
        assert list(scenes.actions.values()) == list(ACTIONS)
        assert scenes.clip(0, 8, 2, 32).shape == (3, 8, 32, 32)
        assert len(scenes.persons) > 0


def test_a_scene_is_a_pure_function_of_its_name(home):
    one, other = (render_scene(SMALL, "train", 1) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0], render_scene(SMALL, "test", 1)[0])
    scenes = open_scenes(SceneSettings(motionworld=SMALL), "train")
    boxes, labels = scenes.labelled_boxes(1)
    assert np.allclose(boxes, one[1], atol=1e-4), "written with four digits"
    assert [[ACTIONS[i] for i in np.flatnonzero(row)] for row in labels] == [sorted(done, key=ACTIONS.index) for done in one[2]]


def test_another_renderer_of_things_makes_other_scenes(monkeypatch):
    before = SMALL.fingerprint
    monkeypatch.setattr("vmae_lab.data.motionworld.scenes.THINGS_VERSION", 99)
    assert SMALL.fingerprint != before


@pytest.fixture(scope="module")
def many() -> list[tuple[np.ndarray, list[tuple[str, ...]]]]:
    """Boxes and actions of many scenes."""
    settings = SceneWorldSettings(side=32, sources=("digits",), seed=3)
    return [render_scene(settings, "train", index)[1:] for index in range(250)]


def test_actors_are_in_the_picture_and_beside_one_another(many):
    for boxes, done in many:
        assert 1 <= len(boxes) == len(done) <= 3
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert all(_overlap(boxes[i], boxes[j]) <= APART for i in range(len(boxes)) for j in range(i))
    assert {len(boxes) for boxes, _ in many} == {1, 2, 3}
    assert {len(actions) for _, done in many for actions in done} == {1, 2}
    assert any(len(set(done)) > 1 for _, done in many), "different actions at once"


def test_the_key_frame_does_not_tell_the_action(many):
    """Place, size and company in the key frame are independent of what is done: no test at .1 % tells them apart."""
    boxes = np.concatenate([boxes for boxes, _ in many])
    first = np.array([ACTIONS.index(actions[0]) for _, done in many for actions in done])
    company = np.array([len(done) for _, done in many for _ in done])
    for name, values in (
        ("x", boxes[:, [0, 2]].mean(1)), ("y", boxes[:, [1, 3]].mean(1)), ("size", boxes[:, 2] - boxes[:, 0]),
    ):  # fmt: skip
        assert kruskal(*(values[first == action] for action in range(8))).pvalue > 0.001, name
    table = [[np.sum((first == action) & (company == size)) for size in (1, 2, 3)] for action in range(8)]
    assert chi2_contingency(table).pvalue > 0.001

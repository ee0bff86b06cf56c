"""Pre-training and evaluation on lists with broken videos: generated ones, and all kinds of the shared ones."""

import json
import os
import textwrap
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vmae_lab.data.corrupt_videos import CorruptVideos
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import VideoSettings, pool
from vmae_lab.data.decoding.pool import Decoders
from vmae_lab.data.eval_clips import MissingVideos, evaluated_clips, middle_clips, readable
from vmae_lab.data.video_lists import ListSettings
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import BatchParts
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask

pytestmark = pytest.mark.slow
MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
HOSTILE = """
    import os, time
    from vmae_lab.data.decoding import decoders, worker

    sound = decoders.read_video

    def read_video(video, *rest):
        if video.path.endswith("hangs.mp4"):
            time.sleep(60)
        if video.path.endswith("crashes.mp4"):
            os.abort()
        return sound(video, *rest)

    decoders.read_video = read_video
    worker.main()
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Make decoders hang on hangs.mp4 and crash on crashes.mp4. No real file at hand does this."""
    (tmp_path / "hostile_child.py").write_text(textwrap.dedent(HOSTILE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(pool, "CHILD", "hostile_child")


def write_video(path: Path, frames: int = 20) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for t in range(frames):
            ramp = np.linspace(0, 200, 48) + 2 * t
            picture = np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (32, 48, 3)).astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def settings_of(root: Path, names: list[str], timeout_s: float = 1.5, follow_links: bool = False) -> DataSettings:
    (root / "list.txt").write_text("".join(f"{name} 0 -1\n" for name in names))
    (root / "labelled.txt").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    labelled = dict.fromkeys(("train", "validation", "test"), "labelled.txt")
    decoding = VideoSettings(timeout_s=timeout_s, follow_links=follow_links)
    return DataSettings(lists=ListSettings(root=str(root), pretrain="list.txt", classes=2, decoding=decoding, **labelled))


def task_of(data: DataSettings, steps: int, file: Path | None = None, repeats: int = 1) -> PretrainTask:
    settings = PretrainSettings(steps=steps, batch_size=8, lr=1e-3, repeats=repeats)
    clips = load_clips(data, "pretrain")
    return PretrainTask(MODEL, MaskSettings(encoder_ratio=0.75), settings, data, clips, 0, CorruptVideos(file))


@pytest.fixture
def mixed(tmp_path) -> DataSettings:
    """Ten videos. One hangs its decoder, one crashes it, and one is not a video."""
    names = [f"{i}.mp4" for i in range(7)] + ["hangs.mp4", "crashes.mp4", "text.mp4"]
    for name in names[:-1]:
        write_video(tmp_path / name)
    (tmp_path / "text.mp4").write_text("not a video")
    return settings_of(tmp_path, names)


def test_training_continues_if_decoders_hang_or_crash(mixed, hostile, tmp_path):
    task = task_of(mixed, steps=5, file=tmp_path / "run" / "quarantine.csv")
    trained = train(task, tmp_path / "run", Compute(tensorboard=False), progress=False)
    assert trained.steps_run == 5
    lines = (tmp_path / "run" / "quarantine.csv").read_text().splitlines()[1:]
    assert sorted(int(line.split(",")[0]) for line in lines) == [7, 8, 9]
    causes = {Path(line.split(",")[1]).name: line for line in lines}
    assert "did not answer within 1.5 s" in causes["hangs.mp4"]
    assert "SIGABRT" in causes["crashes.mp4"]
    assert "not a video but text" in causes["text.mp4"]


def test_workers_draw_the_same_batches_with_broken_videos(mixed, hostile, tmp_path):
    alone = task_of(mixed, 4, tmp_path / "alone.csv")
    expected = [alone.batch(step, range(8))["video"] for step in range(4)]
    shared = BatchParts(task_of(mixed, 4, tmp_path / "shared.csv").batch, range(8))
    loader = DataLoader(shared, batch_size=None, sampler=range(4), num_workers=2)
    for video, batch in zip(expected, loader, strict=True):
        assert torch.equal(video, batch["video"])
    assert sorted((tmp_path / "shared.csv").read_text().splitlines()) == sorted(
        (tmp_path / "alone.csv").read_text().splitlines()
    )


def test_repeats_share_one_decoded_clip(mixed, monkeypatch):
    reads = Counter()
    read = Decoders.read

    def counting(self, video, *rest):
        reads[video.path] += 1
        return read(self, video, *rest)

    monkeypatch.setattr(Decoders, "read", counting)
    batch = task_of(mixed, steps=2, repeats=4).batch(0, range(8))["video"]
    assert sum(count for path, count in reads.items() if not path.endswith("text.mp4")) == 2
    assert not torch.equal(batch[0], batch[1]), "another crop of the same frames"


def test_evaluation_stops_and_names_all_unreadable_videos(mixed, hostile):
    clips = load_clips(mixed, "test", processes=2)
    given: list[torch.Tensor] = []
    with pytest.raises(MissingVideos, match=r"3 of 10 videos cannot be read, so evaluation stopped") as caught:
        given.extend(evaluated_clips(clips, range(10), 4, 1, 16, batch=2))
    assert set(caught.value.failed) == {7, 8, 9}
    assert all(name in str(caught.value) for name in ("hangs.mp4", "crashes.mp4", "text.mp4", "evaluate.missing"))
    assert len(given) == 3, "no batch after the first missing one"
    rows, missing = readable(clips, range(10), 4, 1, 16)
    assert rows == list(range(7))
    assert set(missing.failed) == {7, 8, 9}
    assert middle_clips(clips.subset(rows), range(7), 4, 1, 16).shape == (7, 3, 4, 16, 16)


def test_broken_files_are_replaced_and_the_others_drawn_equally_often(shared, hostile, tmp_path):
    """30% of the list is broken, in many ways. Exactly these are replaced, and the others are drawn equally often."""
    good = sorted((shared / "videos" / "weizmann4").rglob("*.mp4"))
    good += [shared / "videos" / "derived" / f"{name}.mp4" for name in ("frames_01", "gray", "odd_size_yuv444", "rotate90_tag")]
    root = tmp_path / "files"
    root.mkdir()
    broken = make_hostile(root) + link_all([path for path in bad_files(shared) if path.name in UNREADABLE], root)
    names = link_all(good, root) + broken
    assert 0.29 < len(broken) / len(names) < 0.45
    data = settings_of(root, names, timeout_s=5, follow_links=True)
    epochs = 4
    steps = epochs * len(names) // 8
    task = task_of(data, steps, tmp_path / "run" / "quarantine.csv")
    seen: Counter[str] = Counter()
    read = task.clips.decoders.read

    def counting(video, *rest):
        decoded = read(video, *rest)
        seen[Path(video.path).name] += 1
        return decoded

    task.clips.decoders.read = counting
    train(task, tmp_path / "run", Compute(tensorboard=False), progress=False)
    lines = (tmp_path / "run" / "quarantine.csv").read_text().splitlines()[1:]
    assert {names[int(line.split(",")[0])] for line in lines} == set(broken)
    assert set(seen) == set(names) - set(broken)
    assert min(seen.values()) >= epochs - 1, "each is in a whole epoch once"
    assert sum(seen.values()) == steps * 8


# Files of shared/videos/bad without any readable frame. The others have readable parts, or damage without an error.
UNREADABLE = {
    "audio_only.mp4", "avcC_zeroed.mp4", "exo_encrypted_cenc.mp4", "exo_invalid_bitstream.webm", "ffconcat_renamed.mp4",
    "ftyp_then_text.mp4", "git_lfs_pointer.mp4", "html_error_page.mp4", "jpeg_renamed.mp4", "m3u8_renamed.mp4",
    "mdat_all_random.mp4", "mdat_all_zero.mp4", "moov_removed.mp4", "mp3_with_cover_renamed.mp4", "one_byte.mp4",
    "png_renamed.avi", "random_bytes.mp4", "real_16384x8192_3f.mp4", "start_midgop.ts", "stsz_count_50M.mp4", "text.mp4",
    "truncated50_moovlast.mp4", "truncated_headeronly_moovfirst.mp4", "zero_byte.mp4",
}  # fmt: skip


def bad_files(shared: Path) -> list[Path]:
    return sorted(path for path in (shared / "videos" / "bad").iterdir() if path.is_file() and path.name != "RESULTS.csv")


def link_all(paths: list[Path], root: Path) -> list[str]:
    """Link to the files under short names, without copying them."""
    names = []
    for number, path in enumerate(paths):
        names.append(f"{number:03d}-{len(paths)}{path.suffix}")
        (root / names[-1]).symlink_to(path)
    return names


def make_hostile(root: Path) -> list[str]:
    """Files that a repository cannot store: a pipe, a broken link, a link to a device, a folder, and decoder crashes."""
    os.mkfifo(root / "fifo.mp4")
    (root / "dangling.mp4").symlink_to(root / "nowhere.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (root / "device.mp4").symlink_to("/dev/zero")
    (root / "folder.mp4").mkdir()
    for name in ("hangs.mp4", "crashes.mp4"):
        write_video(root / name)
    return ["fifo.mp4", "dangling.mp4", "loop.mp4", "device.mp4", "folder.mp4", "hangs.mp4", "crashes.mp4"]


def test_the_report_names_skipped_videos(smoke, project, tmp_path_factory, capfd, warm):
    """The command fails if a listed video cannot be read. With `evaluate.missing skip`, the report names it."""
    from vmae_lab.cli import main

    root = tmp_path_factory.mktemp("videos")
    for name in ("run", "walk"):
        (root / name).mkdir()
        for number in range(9):
            write_video(root / name / f"{number}.mp4")
    (root / "walk" / "gone.mp4").write_text("not a video")
    listed = [
        f"{path.relative_to(root)} {label}" for label, name in enumerate(("run", "walk")) for path in (root / name).iterdir()
    ]
    (root / "list.txt").write_text("\n".join(sorted(listed)))
    lists = {"root": str(root), "classes": 2, **dict.fromkeys(("train", "test", "validation"), "list.txt")}
    overrides = {
        "data": {"lists": lists, "crop_scales": [1.0]}, "evaluate.sources": [], "evaluate.probe.labels": None,
        "evaluate.finetune_labels": None, "seeds": [0], "arms": ["scratch", "running_cell_50"],
    }  # fmt: skip
    notebook = str(Path(__file__).parents[2] / "notebooks" / "ablation_decoder_mask.ipynb")
    command = ["run", notebook, "--scale", "smoke"]
    for name, value in overrides.items():
        command += ["-p", name, json.dumps(value)]
    assert main(command) == 1
    assert "1 of 19 videos cannot be read, so evaluation stopped" in capfd.readouterr().err
    assert main([*command, "-p", "evaluate.missing", "skip"]) == 0
    page = next((project / "reports").glob("smoke-variant-*/ablation_decoder_mask/README.md")).read_text()
    assert "Unreadable and left out of all averages: 1 video" in page
    assert "walk/gone.mp4" in page

"""Window features, compared with windows cut by hand; long videos in chunks; resumed extraction."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_videos import drawn, write_video
from PIL import Image
from torch import nn

from vmae_lab.cli import main
from vmae_lab.data.decoding import VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.frame_sampling import Everything
from vmae_lab.data.transforms import centre_crop, squash
from vmae_lab.data.video_dataset import VideoDataset, clips_of
from vmae_lab.data.video_features import FeatureFolder
from vmae_lab.data.video_lists import ListError, read_list
from vmae_lab.evaluation import features
from vmae_lab.evaluation.features import FeatureError, FeatureSettings, extract_features, open_extracted
from vmae_lab.models.checkpoints import open_checkpoint
from vmae_lab.models.checkpoints.save import save_checkpoint
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import patchify
from vmae_lab.utils.seeding import seeded

SHAPE = ClipShape(frames=4, side=16, tubelet=2, patch=8)


def classifier(seed: int = 0) -> VideoClassifier:
    with seeded(seed, "a model to take features of"):
        return VideoClassifier(SIZES["micro"], SHAPE, 3)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three videos: one of 25 frames, one shorter than a window, and one with exactly two windows at stride 3."""
    folder = tmp_path / "videos"
    for name, frames in (("run/long.mp4", 25), ("short.mp4", 3), ("exact.mp4", 7)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, frames, options={"qp": "0"})
    return folder


def listed(folder: Path) -> VideoDataset:
    return clips_of({"test": (read_list(".", folder), "")}, VideoSettings())


def by_hand(clips: VideoDataset, row: int, starts: list[int], model: VideoClassifier, crop=squash) -> np.ndarray:
    """Encode each window separately. The last frame is repeated at the end of the video."""
    video = clips.video(row, Everything())
    found = []
    for start in starts:
        numbers = [min(start + t, video.shape[1] - 1) for t in range(4)]
        small = clips.video(row, Everything(), 16)[:, numbers]
        with torch.no_grad():
            found.append(model.head.fc_norm(model.encoder(crop(small, 16)[None]).mean(1))[0].numpy())
    return np.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [3, 4, 6])
def test_windows_equal_those_cut_by_hand_for_every_chunk_size(folder, tmp_path, stride):
    clips, model = listed(folder), classifier()
    starts = {"exact.mp4": [0, 3] if stride == 3 else [0], "short.mp4": [0], "run/long.mp4": list(range(0, 22, stride))}
    names = [Path(clips.name(row)).relative_to(folder).as_posix() for row in range(3)]
    expected = [by_hand(clips, row, starts[name], model) for row, name in enumerate(names)]
    for chunk in (4, 8, 12, 1024):
        out = tmp_path / str(chunk)
        done = extract_features(
            model.encoder, clips, out, FeatureSettings(stride=stride), model.head.fc_norm, batch=2, chunk=chunk, progress=False
        )
        for row, name in enumerate(names):
            features = np.load(out / f"{name}.npy")
            np.testing.assert_allclose(features, expected[row], atol=1e-5)
            assert features.dtype == np.float32
            table = done.windows[done.windows.path == clips.name(row)]
            assert table.first_frame.tolist() == starts[name]
            np.testing.assert_allclose(table.start_s, np.array(starts[name]) / 25)
        ends = done.windows[done.windows.file == "short.mp4.npy"].end_s.tolist()
        assert ends == [pytest.approx(3 / 25)], "it ends with the video"
        assert pd.read_csv(out / "windows.csv").first_frame.tolist() == done.windows.first_frame.tolist()


@pytest.mark.parametrize("chunk", [4, 1024])
def test_streamed_windows_equal_those_cut_by_hand(folder, tmp_path, monkeypatch, chunk):
    """PyAV streams long and large videos, and files that decord does not read exactly."""
    clips, model = listed(folder), classifier()
    monkeypatch.setattr(features, "LARGEST_SEEKING", 0)
    streamed, stream = [], clips.decoders.stream
    monkeypatch.setattr(clips.decoders, "stream", lambda *request: streamed.append(request) or stream(*request))
    extract_features(model.encoder, clips, tmp_path / "out", FeatureSettings(), model.head.fc_norm, chunk=chunk, progress=False)
    assert len(streamed) == 3
    reference = clips_of({"test": (read_list(".", folder), "")}, VideoSettings(decoder="pyav"))
    starts = {"exact.mp4": [0], "short.mp4": [0], "run/long.mp4": list(range(0, 22, 4))}
    for row in range(3):
        name = Path(clips.name(row)).relative_to(folder).as_posix()
        expected = by_hand(reference, row, starts[name], model)
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{name}.npy"), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_a_fragmented_video_has_all_its_windows(tmp_path, codec):
    """Its sample table has the first 12 of 40 frames. decord reads one of the files, PyAV the other."""
    videos, model = tmp_path / "videos", classifier()
    videos.mkdir()
    write_video(videos / "fragments.mp4", codec=codec, options={"bf": "2"}, mux={"movflags": "frag_keyframe"})
    for chunk in (8, 1024):
        done = extract_features(
            model.encoder, listed(videos), tmp_path / str(chunk), FeatureSettings(), chunk=chunk, progress=False
        )
        assert done.windows.first_frame.tolist() == list(range(0, 37, FeatureSettings().stride))


def test_frames_can_be_squashed_or_cropped_and_only_scaled(folder, tmp_path):
    clips, model = listed(folder), classifier()
    row = next(row for row in range(3) if "exact" in clips.name(row))
    found = {}
    for name, settings in {"squash": {}, "centre": {"frame": "centre"}, "scale": {"scale_only": True}}.items():
        extract_features(model.encoder, clips, tmp_path / name, FeatureSettings(**settings), progress=False)
        found[name] = np.load(tmp_path / name / "exact.mp4.npy")
    plain = classifier()
    plain.head.fc_norm = nn.Identity()
    np.testing.assert_allclose(found["centre"], by_hand(clips, row, [0], plain, centre_crop), atol=1e-5)
    plain.encoder.pixels.mean.zero_()
    plain.encoder.pixels.std.fill_(1)
    np.testing.assert_allclose(found["scale"], by_hand(clips, row, [0], plain), atol=1e-5)
    assert np.abs(found["squash"] - found["scale"]).max() > 1e-2
    assert np.abs(found["squash"] - found["centre"]).max() > 1e-4


def test_a_long_video_is_never_completely_in_memory(folder, tmp_path, monkeypatch):
    clips, asked = listed(folder), []
    read = clips.decoders.read

    def noted(file, choose, short_side):
        decoded = read(file, choose, short_side)
        asked.append(len(decoded.indices))
        return decoded

    monkeypatch.setattr(clips.decoders, "read", noted)
    extract_features(classifier().encoder, clips, tmp_path / "out", FeatureSettings(stride=2), chunk=8, progress=False)
    assert max(asked) == 8
    assert len(np.load(tmp_path / "out" / "run" / "long.mp4.npy")) == 11


def test_finished_videos_are_skipped_and_failed_ones_tried_again(folder, tmp_path, monkeypatch):
    (folder / "broken.mp4").write_text("<html>not found</html>")
    model, out = classifier(), tmp_path / "out"
    first = extract_features(model.encoder, listed(folder), out, FeatureSettings(), progress=False)
    assert [error.cause for error in first.failed.values()] == ["not a video but a web page, so the download failed"]
    assert "broken.mp4" in (out / "failures.csv").read_text()
    journal = out / "features.jsonl"
    journal.write_text(journal.read_text() + '{"key": "cut sho')
    (out / "short.mp4.npy").unlink()
    write_video(folder / "broken.mp4", 9)
    clips, decoded = listed(folder), []
    read = clips.decoders.read

    def noted(file, choose, short_side):
        decoded.append(Path(file.path).name)
        return read(file, choose, short_side)

    monkeypatch.setattr(clips.decoders, "read", noted)
    again = extract_features(model.encoder, clips, out, FeatureSettings(), progress=False)
    assert list(dict.fromkeys(decoded)) == ["broken.mp4", "short.mp4"], (
        "the repaired video, and the one whose feature file is missing"
    )
    assert not again.failed
    assert set(again.windows.file) == {"broken.mp4.npy", "exact.mp4.npy", "run/long.mp4.npy", "short.mp4.npy"}
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def test_a_folder_with_other_features_is_refused(folder, tmp_path):
    clips, out = listed(folder), tmp_path / "out"
    extract_features(classifier().encoder, clips, out, FeatureSettings(), progress=False)
    with pytest.raises(FeatureError, match="window stride 4, now 2"):
        extract_features(classifier().encoder, clips, out, FeatureSettings(stride=2), progress=False)
    with pytest.raises(FeatureError, match="weights"):
        extract_features(classifier(1).encoder, clips, out, FeatureSettings(), progress=False)


def test_parts_of_a_folder_of_frames_have_separate_files(folder, tmp_path):
    """Two parts of a folder of frames are two videos without a frame rate."""
    (folder / "frames").mkdir()
    for number in range(1, 13):
        Image.fromarray(drawn(number)).save(folder / "frames" / f"img_{number:05d}.jpg")
    (folder / "list.txt").write_text("frames 1 8\nframes 5 8\n")
    clips = clips_of({"test": (read_list("list.txt", folder), FRAMES)}, VideoSettings())
    done = extract_features(classifier().encoder, clips, tmp_path / "out", FeatureSettings(), progress=False)
    assert not done.failed
    first, second = done.windows.file.unique()
    assert (first, second) == ("frames@1-8.npy", "frames@5-8.npy")
    assert done.windows.start_s.isna().all()
    first_features, second_features = (np.load(tmp_path / "out" / name) for name in (first, second))
    np.testing.assert_allclose(
        first_features[1], second_features[0], atol=1e-5, err_msg="picture 5 is the first of the second video"
    )


def test_long_names_are_shortened(folder, tmp_path):
    long = ["x" * 250 + f"{ending}.mp4" for ending in "ab"]
    for name in long:
        write_video(folder / name, 7)
    done = extract_features(classifier().encoder, listed(folder), tmp_path / "out", FeatureSettings(), progress=False)
    assert not done.failed
    files = [done.windows.file[done.windows.path.str.endswith(name)].unique().item() for name in long]
    assert len(set(files)) == 2
    assert all((tmp_path / "out" / file).is_file() for file in files)


def test_other_formats_have_the_same_features(folder, tmp_path):
    clips, encoder = listed(folder), classifier().encoder
    for form in ("npy", "npz"):
        extract_features(encoder, clips, tmp_path / form, FeatureSettings(format=form), progress=False)
    plain = np.load(tmp_path / "npy" / "run" / "long.mp4.npy")
    packed = np.load(tmp_path / "npz" / "run" / "long.mp4.npz")
    assert np.array_equal(packed["features"], plain)
    assert packed["first_frame"].tolist() == [0, 4, 8, 12, 16, 20]
    pytest.importorskip("pyarrow")
    extract_features(encoder, clips, tmp_path / "parquet", FeatureSettings(format="parquet"), progress=False)
    table = pd.read_parquet(tmp_path / "parquet" / "run" / "long.mp4.parquet")
    assert np.array_equal(np.stack(table["features"]), plain)
    assert table["first_frame"].tolist() == [0, 4, 8, 12, 16, 20]


@pytest.mark.slow
def test_the_exit_status_of_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(classifier().save_pretrained(tmp_path / "model"))
    arguments = ["features", ".", "--root", str(folder), "--model", model, "--window-stride", "3", "--device", "cpu"]
    assert main(arguments) == 0
    assert "3 of 3 videos, 11 windows" in capsys.readouterr().out
    assert (tmp_path / "videos.features" / "run" / "long.mp4.npy").is_file()
    (folder / "broken.mp4").write_text("<html>not found</html>")
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "3 of 4 videos" in printed
    assert "broken.mp4: not a video but a web page" in printed
    assert main([*arguments, "--skip-missing"]) == 0
    assert main([*arguments, "--frame", "centre"]) == 2
    assert "frame squash, now centre" in capsys.readouterr().err


def test_the_command_accepts_a_pretrained_model(folder, tmp_path, monkeypatch):
    """A model with a decoder: the encoder normalizes tokens, and clips have another number of frames than in training."""
    monkeypatch.chdir(tmp_path)
    model = VideoMAE(SIZES["micro"], ClipShape(frames=8, side=16, tubelet=2, patch=8))
    where = str(model.save_pretrained(tmp_path / "model"))
    arguments = ["features", ".", "--root", str(folder), "--model", where, "--device", "cpu"]
    assert main([*arguments, "--frames", "4"]) == 0
    clip = listed(folder).video(0, Everything(), 16)[:, :4]
    encoder = VideoMAE.from_pretrained(where, frames=4).encoder
    with torch.no_grad():
        expected = encoder(squash(clip, 16)[None]).mean(1)[0].numpy()
    first = Path(listed(folder).name(0)).relative_to(folder)
    np.testing.assert_allclose(np.load(tmp_path / "videos.features" / f"{first}.npy")[0], expected, atol=1e-5)
    assert main([*arguments[:4], "--model", "nowhere"]) == 2


@pytest.mark.parametrize("name", ["one.mp4", "日本", "caf\udce9.mp4"])
def test_the_command_accepts_a_single_video(folder, tmp_path, monkeypatch, capsys, name):
    """It is detected by suffix or content. A list with the video gives the same features."""
    monkeypatch.chdir(tmp_path)
    (folder / "run" / "long.mp4").rename(folder / name)
    where = str(classifier().save_pretrained(tmp_path / "model"))
    options = ["--model", where, "--device", "cpu", "--stride", "3", "--out"]
    assert main(["features", str(folder / name), *options, "one"]) == 0
    assert main(["features", name, "--root", str(folder), *options, "other"]) == 0
    assert "1 of 1 video, 8 windows" in capsys.readouterr().out
    (file,), (listed_file,) = (set(pd.read_csv(tmp_path / out / "windows.csv").file) for out in ("one", "other"))
    assert np.array_equal(np.load(tmp_path / "one" / file), np.load(tmp_path / "other" / listed_file))
    assert main(["features", name, "--root", str(folder), "--labelled", *options, "third"]) == 2
    assert "without a label" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_an_encoder_needs_no_head(folder, tmp_path, monkeypatch, capsys):
    """Like OpenGVLab/VideoMAEv2-Base: encoder and fc_norm without a head."""
    model = classifier()
    torch.nn.init.normal_(model.head.fc_norm.weight)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.head.")}
    config = model.config.model_copy(update={"classes": None})
    save_checkpoint(state, config, tmp_path / "bare", "remote_code", "")
    opened = []
    monkeypatch.setattr(features, "open_checkpoint", lambda where: opened.append(where) or open_checkpoint(where))
    arguments = ["features", ".", "--root", str(folder), "--device", "cpu", "--stride", "3"]
    assert main([*arguments, "--model", str(tmp_path / "bare"), "--out", str(tmp_path / "out")]) == 0
    assert opened == [str(tmp_path / "bare")], "the file is read once"
    made = extract_features(model.encoder, listed(folder), tmp_path / "whole", FeatureSettings(stride=3), model.head.fc_norm)
    for file in made.windows.file:
        assert np.array_equal(np.load(tmp_path / "out" / file), np.load(tmp_path / "whole" / file))
    assert main([*arguments, "--model", str(tmp_path / "bare"), "--frames", "15"]) == 2
    assert "a clip of 15 frames x 16 x 16 pixels cannot be split into" in capsys.readouterr().err
    encoder_alone = {name: value for name, value in state.items() if name.startswith("encoder.")}
    save_checkpoint(encoder_alone, config, tmp_path / "alone", "vmae_lab", "")
    with pytest.warns(UserWarning, match="has no fc_norm"):
        _, norm = features.open_encoder(tmp_path / "alone", None, None, "cpu")
    assert torch.equal(norm.weight, torch.ones(64))


def test_layers_and_tokens_equal_those_of_the_blocks(folder, tmp_path, capsys):
    """Tokens of block 1 by hand, and that only the last block is normalized; means are those of the tokens."""
    model, clips = classifier(), listed(folder)
    torch.nn.init.normal_(model.head.fc_norm.weight)
    row = next(row for row in range(3) if clips.name(row).endswith("exact.mp4"))
    window = squash(clips.video(row, Everything(), 16)[:, :4], 16)[None]
    encoder = model.encoder.eval()
    with torch.no_grad():
        embedded = encoder.embed(encoder.pixels.normalised(patchify(window, SHAPE))) + encoder.positions
        first = encoder.trunk.blocks[0](embedded)
        last = model.head.fc_norm(encoder(window))
    depth = encoder.depth
    for layer, expected in ((1, first), (depth, last), (None, last)):
        out = tmp_path / f"tokens-{layer}"
        extract_features(encoder, clips, out, FeatureSettings(), model.head.fc_norm, progress=False, layer=layer, tokens=True)
        found = np.load(out / "exact.mp4.npy")
        assert found.shape == (1, SHAPE.tokens, 64)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    out = tmp_path / "mean"
    extract_features(encoder, clips, out, FeatureSettings(), model.head.fc_norm, progress=False, layer=1)
    np.testing.assert_allclose(np.load(out / "exact.mp4.npy"), first.mean(1), atol=1e-5)
    with pytest.raises(FeatureError, match="layer 1, now None"):
        extract_features(encoder, clips, out, FeatureSettings(), model.head.fc_norm, progress=False)
    model.save_pretrained(tmp_path / "model")
    arguments = ["features", ".", "--root", str(folder), "--device", "cpu", "--model", str(tmp_path / "model")]
    assert main([*arguments, "--layer", "1", "--tokens", "--format", "parquet", "--out", str(tmp_path / "command")]) == 0
    nested = pd.read_parquet(tmp_path / "command" / "exact.mp4.parquet").features
    np.testing.assert_allclose(np.array([np.stack(part) for part in nested]), first, atol=1e-5)
    assert main([*arguments, "--layer", str(depth + 1)]) == 2
    assert f"the encoder has {depth} blocks" in capsys.readouterr().err


def test_missing_features_are_named(folder, tmp_path):
    extract_features(classifier().encoder, listed(folder), tmp_path / "made", FeatureSettings(), progress=False)
    assert set(open_extracted(tmp_path / "made", ["long", "short"]).lengths) == {"long", "short"}
    with pytest.raises(ListError, match=r"features of 1 of 2 videos .*elsewhere"):
        open_extracted(tmp_path / "made", ["long", "elsewhere"])


def test_the_default_pattern_of_a_detector_finds_extracted_features(folder, tmp_path):
    encoder, made = classifier().encoder, tmp_path / "made"
    extract_features(encoder, listed(folder), made, FeatureSettings(stride=2), progress=False)
    settings = FeatureFolder(folder="made", stride=2, frames=encoder.clip.frames)
    found = settings.files(made, ["long", "short", "elsewhere"])
    assert found == {
        "long": made / "run" / "long.mp4.npy",
        "short": made / "short.mp4.npy",
        "elsewhere": made / "elsewhere.npy",
    }
    with pytest.raises(ListError, match=r"with stride 2 .*, not of \d+ frames with stride 8"):
        settings.model_copy(update={"stride": 8}).files(made, ["long"])
    windows = (made / "windows.csv").read_text()
    (made / "windows.csv").write_text(windows.replace("run/long.mp4,", "short.mov,"))
    with pytest.raises(ListError, match=r"windows\.csv has several videos of the same name: short"):
        settings.files(made, ["short"])

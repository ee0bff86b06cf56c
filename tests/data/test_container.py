"""Files that are refused before a decoder opens them, and unusual file names, which are accepted."""

import os
import socket
from pathlib import Path

import pytest
from made_videos import drawn, shown, write_video
from PIL import Image

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings, read_frames, read_video
from vmae_lab.data.frame_sampling import Everything


def test_only_regular_files_are_opened(tmp_path):
    """Opening a pipe would block, and reading a device would not end."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing.mp4")
    (tmp_path / "empty.mp4").touch()
    causes = {
        "pipe.mp4": "a named pipe",
        "folder.mp4": "a folder",
        "zero.mp4": "a device",
        "a.mp4": "too many levels of symbolic links",
        "dangling.mp4": "no such file",
        "empty.mp4": "is empty",
        "nul\0.mp4": "a NUL byte",
        "x" * 300 + ".mp4": "too long",
    }
    for name, cause in causes.items():
        with pytest.raises(VideoError, match=cause) as caught:
            read_frames(tmp_path / name)
        assert name in caught.value.path
    with pytest.raises(VideoError, match="path is empty"):
        read_frames("")


def test_links_outside_the_root_are_refused_unless_followed(tmp_path):
    root, outside = tmp_path / "root", write_video(tmp_path / "outside.mp4", 3)
    root.mkdir()
    (root / "out.mp4").symlink_to(outside)
    write_video(root / "real.mp4", 3)
    (root / "in.mp4").symlink_to("real.mp4")
    read_video(VideoFile(str(root / "in.mp4"), str(root)), Everything(), VideoSettings())
    for path in (root / "out.mp4", root / "../outside.mp4"):
        video = VideoFile(str(path), str(root))
        with pytest.raises(VideoError, match="outside the root"):
            read_video(video, Everything(), VideoSettings())
        assert len(read_video(video, Everything(), VideoSettings(follow_links=True)).frames) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_an_error(tmp_path):
    path = write_video(tmp_path / "secret.mp4", 3)
    path.chmod(0)
    with pytest.raises(VideoError, match=r"secret\.mp4.*Permission denied"):
        read_frames(path)


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_playlists_are_refused_by_content(tmp_path, decoder):
    """A decoder would open the files and addresses in them. No request may arrive at the address."""
    real = write_video(tmp_path / "real.mp4", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/real.mp4"
        for target in (str(real), "real.mp4", address):
            texts = [
                f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
                f"ffconcat version 1.0\nfile '{target}'\n",
                f'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-live:2011"><BaseURL>{target}</BaseURL></MPD>',
                f'<MPD profiles="urn:mpeg:dash:profile:isoff-live:2011"><BaseURL>{target}</BaseURL></MPD>',
                "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
                "data:video/mp4;base64,AAAA",
                f"concat:{target}|{target}",
            ]
            for number, text in enumerate(start + text for text in texts for start in ("", "\ufeff", "  ", "\r\n\n")):
                path = tmp_path / f"{number}.mp4"
                path.write_text(text, encoding="utf-8")
                with pytest.raises(VideoError, match=r"not a video but (a playlist|an XML document|text)"):
                    read_frames(path, [0], VideoSettings(decoder=decoder))
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("brand", ["isom", "qt  ", "3gp4", "M4V ", "mp41", "f4v ", "dash", "iso6", "cmfc", "msdh", "avis"])
def test_mp4_files_of_any_brand_are_read(tmp_path, brand):
    path = write_video(tmp_path / "video.mp4", 3, mux={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    data = path.read_bytes()
    for start in (b"", b"\0\0\0\x08free", b"\0\0\0\x18styp" + b"msdh" * 4, b"\0\0\0\x18uuid" + b"\0" * 16):
        path.write_bytes(start + data[:8] + brand.encode() + data[12:])
        assert shown(read_frames(path)) == [0, 1, 2], start


@pytest.mark.parametrize("brand", ["heic", "heix", "mif1", "avif"])
def test_pictures_in_video_containers_are_refused(tmp_path, brand):
    path = tmp_path / "picture.mp4"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + b"\0\0\0\0mif1miaf" + b"\0" * 100)
    with pytest.raises(VideoError, match=r"picture\.mp4.*a picture"):
        read_frames(path)


@pytest.mark.parametrize("name", ["video.nut", "video.ivf", "video.h264", "video.mxf", "video.y4m"])
def test_unsupported_containers_are_named(tmp_path, name):
    codec = {"video.ivf": "libvpx-vp9", "video.mxf": "mpeg2video", "video.y4m": "wrapped_avframe"}.get(name, "h264")
    with pytest.raises(VideoError, match=r"container .* is not supported"):
        read_frames(write_video(tmp_path / name, 3, codec=codec, size=(64, 64)))


ODD_NAMES = [
    "-dash.mp4", "proto:colon.mp4", "x_%04d.mp4", "x_%04d.jpg", "new\nline.mp4", "emoji_😀.mp4", " space name .mp4",
    "quote'and\"dq.mp4", "back\\slash.mp4", "concat:a|b.mp4", "pipe:0", "a.m3u8", "a.sdp", "#hash?query=1.mp4",
    "경로.mp4", os.fsdecode(b"\xff\xfe.mp4"),
]  # fmt: skip


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_unusual_file_names_are_read(tmp_path, monkeypatch, decoder):
    data = write_video(tmp_path / "video.mp4", 3).read_bytes()
    monkeypatch.chdir(tmp_path)
    for number in range(3):  # decord would treat x_%04d.jpg as a pattern of these
        Image.fromarray(drawn(200)).save(f"x_{number:04d}.jpg")
    for name in ODD_NAMES:
        Path(name).write_bytes(data)
        for path in (name, tmp_path / name):
            assert shown(read_frames(path, settings=VideoSettings(decoder=decoder))) == [0, 1, 2], name


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_frames_that_are_too_large_are_refused(tmp_path, decoder):
    path = write_video(tmp_path / "video.mp4", 3)
    assert len(read_frames(path, settings=VideoSettings(decoder=decoder, max_pixels=64 * 48))) == 3
    with pytest.raises(VideoError, match=r"64 x 48 exceed.*max_pixels"):
        read_frames(path, settings=VideoSettings(decoder=decoder, max_pixels=64 * 48 - 1))

"""The decoders: decord for files it reads exactly, PyAV (from the start, exact by construction) for the rest, or torchcodec.

A video has the frames that decoding it from the start gives. Which decoder reads a file is decided by its container, codec,
packets and display matrix. What decord does with each kind of file was measured against decoding from the start: its random
access is silently wrong in AVI, ASF, MPEG streams, behind edit lists, in 4:4:4, in open groups of pictures, and if the
first frame is no key frame; it mirrors no pictures.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import av
import decord
import numpy as np

from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, cause_of, screen
from vmae_lab.data.decoding.images import read_pictures
from vmae_lab.data.decoding.mp4 import box_types, has_idr, is_fragmented
from vmae_lab.data.decoding.pixels import AS_STORED, arranged, orientation_of, shrunk, shrunk_size, upright_pixels
from vmae_lab.data.decoding.pyav import best_stream, open_pyav, open_source

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(None)

Choose = Callable[[int], Sequence[int]]  # frames a video has -> frames wanted
# Containers with an exact index, and the codecs for which decord's random access was seen to be exact in them.
EXACT_IN_DECORD = {
    "mov": {"h264", "hevc", "mpeg4", "vp9"},
    "matroska": {"h264", "hevc", "vp8", "vp9"},
    "flv": {"h264"},
    "avi": {"mjpeg"},
}
INEXACT_IN_TORCHCODEC = ("avi", "flv")  # packed MPEG-4, and an index of key frames
EXACT_PIXELS = {"yuv420p", "yuvj420p", "yuvj422p"}  # after a seek into H.264 4:4:4 decord was seen to give broken frames
SMALLEST_SIDE = 16  # decord pads frames that are no larger


@dataclass(frozen=True)
class VideoInfo:
    """What a file is, without decoding it; sizes are of stored frames, before rotation.

    `frames` is 0 if only decoding tells. `announced` is the number in the header, which may be wrong (0: there is none).
    """

    container: str
    codec: str
    width: int
    height: int
    frames: int
    fps: float
    decoder: str
    announced: int = 0


@dataclass(frozen=True)
class Decoded:
    """Some frames of a video: uint8 `(T, H, W, 3)` RGB, upright, their numbers, and what the file is."""

    frames: np.ndarray
    indices: tuple[int, ...]
    info: VideoInfo


def read_video(video: VideoFile, choose: Choose, settings: VideoSettings, short_side: int | None = None) -> Decoded:
    """The frames that `choose` picks, numbered in the order they are shown, in this process. Raises VideoError.

    `choose` is called with the number of frames, and again if there turn out to be fewer or more. Frames whose short side
    is above `short_side` pixels are shrunk to it right behind the decoder.
    """
    path = screen(video, settings.follow_links)
    if video.total >= 0:
        return _read_folder(video, path, choose, settings, short_side)
    source, container = open_source(video, path)
    checked = video if is_as_checked(video, path) else None
    decoder: str | None = settings.decoder
    while decoder:
        info = probe(video.path, source, container, settings.model_copy(update={"decoder": decoder}), checked)
        try:
            frames, indices = READERS[info.decoder](source, info, choose, short_side)
            return Decoded(frames, tuple(indices), info)
        except IndexError as error:  # what was asked for, not how it was read
            raise VideoError(video.path, str(error), info.codec) from None
        except (av.FFmpegError, decord.DECORDError, RuntimeError, ValueError, MemoryError) as error:
            cause = cause_of(error)
        # PyAV reads what decord refuses or gives up on.
        decoder = "pyav" if decoder == "auto" and info.decoder == "decord" else None
    raise VideoError(video.path, cause, info.codec)


def is_as_checked(video: VideoFile, path: str) -> bool:
    return video.decoder != "" and video.bytes == (video.size if video.size >= 0 else os.path.getsize(path))


def probe(path: str, source: Any, container: str, settings: VideoSettings, checked: VideoFile | None = None) -> VideoInfo:
    """Read a file's header, refuse what is too large, and decide on a decoder. Raises VideoError.

    If a file was `checked`, its frames are those that the check decoded, and its packets are not read: of a film that takes
    long.
    """
    boxes = box_types(source) if container == "mov" else set()
    if b"moof" in boxes and b"moov" not in boxes:
        raise VideoError(path, "a media segment (DASH, HLS) without its initialization segment; put that before it")
    try:
        with open_pyav(source, container) as opened:
            stream = best_stream(opened)
            if stream is None:
                raise VideoError(path, "no video stream in it, only sound or data")
            if stream.codec_context is None:
                raise VideoError(path, "its codec is not known")
            info = VideoInfo(
                container, stream.codec_context.codec.canonical_name, stream.codec_context.width,
                stream.codec_context.height, 0, float(stream.average_rate or 0), "pyav",
                stream.frames if stream.frames <= opened.size else 0,  # no frame takes less than a byte
            )  # fmt: skip
            if info.width * info.height > settings.max_pixels:
                limit = f"the bound of {settings.max_pixels / 1e6:.1f} megapixels (max_pixels)"
                raise VideoError(path, f"frames of {info.width} x {info.height} are larger than {limit}", info.codec)
            if b"mvex" in boxes and b"moof" not in boxes and not info.announced:
                raise VideoError(path, "only an initialization segment (DASH, HLS), without frames", info.codec)
            if checked and checked.frames > 0:
                info = replace(info, frames=checked.frames)
            elif container == "mov" and not is_fragmented(boxes):
                listed = sum(not entry.is_discard for entry in stream.index_entries)  # an edit list hides the others
                info = replace(info, frames=listed, announced=listed)
            torchcodec = settings.decoder == "torchcodec"
            exact = container not in INEXACT_IN_TORCHCODEC if torchcodec else _decord_may_be_exact(opened, stream, info)
        if settings.decoder == "pyav":
            return info
        exact = exact and _turned_alike(source, info)
        if exact and not torchcodec:
            in_order = container == "flv" or is_fragmented(boxes)
            packets = info.frames if checked else _seeks_are_exact(source, info, in_order)
            exact = checked.decoder == "decord" if checked else packets > 0
            info = replace(info, frames=packets or info.frames)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(path, f"cannot be opened: {cause_of(error)}") from None
    if settings.decoder == "auto":
        return replace(info, decoder="decord" if exact else "pyav")
    if not exact:
        raise VideoError(
            path, f"{settings.decoder} does not give its frames exactly and upright; set decoder to auto or pyav", info.codec
        )
    return replace(info, decoder=settings.decoder)


def _turned_alike(source: Any, info: VideoInfo) -> bool:
    """Whether decord and torchcodec turn the pictures upright: they apply quarter turns that an MP4's header tells.

    They ignore mirroring, and turns that other headers or the pictures' own data (SEI, EXIF) tell.
    """
    try:
        first = next(shown_frames(source, info))
    except (StopIteration, av.FFmpegError):
        return False
    orientation = orientation_of(first)
    if orientation == AS_STORED:
        return True
    if info.container != "mov" or orientation.mirrored or 1 < first.rotation % 90 < 89:
        return False
    bare = cast(av.VideoCodecContext, av.CodecContext.create(info.codec, "r"))  # knows nothing of the header
    with open_pyav(source, info.container) as opened:
        stream = best_stream(opened)
        assert stream is not None, "there is one: `probe` looks first"
        bare.extradata = stream.codec_context.extradata
        return orientation_of(next(frame for packet in opened.demux(stream) for frame in bare.decode(packet))) == AS_STORED


def _decord_may_be_exact(opened: av.container.InputContainer, stream: av.VideoStream, info: VideoInfo) -> bool:
    codec = stream.codec_context
    if info.codec not in EXACT_IN_DECORD.get(info.container, ()) or codec.pix_fmt not in EXACT_PIXELS:
        return False
    if min(info.width, info.height) <= SMALLEST_SIDE or len(opened.streams.video) > 1:  # of several it takes another one
        return False
    if info.container == "matroska" and opened.duration is None:  # live recordings, which decord refuses
        return False
    if opened.metadata.get("hasKeyframes") == "true":  # in FLV: decord seeks by that index, a few frames off with B-frames
        return False
    return "%" not in opened.name  # decord takes x_%d.png for the pattern of many pictures' names


def _seeks_are_exact(source: Any, info: VideoInfo, in_order: bool) -> int:
    """The number of frames if decoding from any key frame on shows just those from it on, which decord counts on; else 0.

    It does not in an open group of pictures (frames after a key frame that are shown before it), behind an edit list,
    and if pictures are refreshed little by little: key frames of H.264 that hold no IDR picture. `in_order`: nor if frames are
    stored in another order than they are shown (B-frames), since in FLV and in fragments decord then takes a neighbour of a
    frame that is near a key frame.
    """
    times, key, delays = [], None, set[int]()
    with open_pyav(source, info.container) as opened:
        for packet in opened.demux(best_stream(opened)):
            if not packet.size:  # the end
                continue
            time = packet.dts if packet.pts is None else packet.pts
            if packet.is_keyframe:
                key = time
                if info.codec == "h264" and not has_idr(bytes(packet)):
                    return 0
            if packet.is_discard or time is None or key is None or time < key:
                return 0
            delays.add(time - (time if packet.dts is None else packet.dts))
            if in_order and len(delays) > 1:
                return 0
            times.append(time)
    return len(times) if len(times) == len(set(times)) and info.frames in (0, len(times)) else 0


def _read_decord(source: Any, info: VideoInfo, choose: Choose, short_side: int | None) -> tuple[np.ndarray, Sequence[int]]:
    if hasattr(source, "seek"):
        source.seek(0)
    reader = decord.VideoReader(source, num_threads=1)
    indices = _chosen(choose, _agreed(len(reader), info))
    unique = sorted(set(indices))
    parts = []
    each = max(1, (8 << 20) // (3 * info.width * info.height))  # full-size frames held at a time
    for start in range(0, len(unique), each):
        parts += [shrunk(frame, short_side) for frame in reader.get_batch(unique[start : start + each]).asnumpy()]
    return arranged(dict(zip(unique, parts, strict=True)), indices), indices


def _read_pyav(source: Any, info: VideoInfo, choose: Choose, short_side: int | None) -> tuple[np.ndarray, Sequence[int]]:
    """Decode from the start up to the last frame wanted: what each number means is then beyond doubt."""
    count = info.frames
    if not count:
        frames, indices, count = _read_to_the_end(source, info, choose, short_side)
        if frames is not None:
            return frames, indices
    indices = _chosen(choose, count)
    found, count, error = _walk(source, info, set(indices), short_side)
    if error is None and count and set(indices) - set(found):  # the header promised more frames than there are
        indices = _chosen(choose, count)
        found, count, error = _walk(source, info, set(indices), short_side)
    missing = sorted(set(indices) - set(found))
    if missing:
        cause = cause_of(error) if error else "there are no more"
        raise ValueError(f"{count} frames could be decoded; frame {missing[0]} could not: {cause}")
    return arranged(found, indices), indices


def _read_to_the_end(
    source: Any, info: VideoInfo, choose: Choose, short_side: int | None
) -> tuple[np.ndarray | None, Sequence[int], int]:  # fmt: skip
    """Decode once, for as many frames as there are packets; None if there are fewer or more. And how many there are."""
    packets, indices = 0, []
    with suppress(av.FFmpegError, IndexError, ValueError):
        with open_pyav(source, info.container) as opened:
            packets = sum(packet.size > 0 for packet in opened.demux(best_stream(opened)))
        indices = _chosen(choose, packets)
    found, count, error = _walk(source, info, set(indices), short_side, to_end=True)
    if error is not None:
        return None, indices, count_frames(source, info)
    return arranged(found, indices) if indices and count == packets else None, indices, count


def _walk(
    source: Any, info: VideoInfo, wanted: set[int], short_side: int | None, to_end: bool = False
) -> tuple[dict[int, np.ndarray], int, Exception | None]:
    """Wanted frames, how many were decoded, and what stopped the decoder before the last of them, if something did."""
    found: dict[int, np.ndarray] = {}
    count, last = 0, max(wanted, default=-1)
    try:
        for frame in shown_frames(source, info):
            if count == 0:  # a stream's size and orientation may change midway: the first ones hold
                size, orientation = shrunk_size(frame.height, frame.width, short_side), orientation_of(frame)
            if frame.is_corrupt:  # those after it are wrong as well, and which number each has is not known
                return found, count, ValueError(f"frame {count} is damaged")
            if count in wanted:
                found[count] = upright_pixels(frame, *size, orientation)
            count += 1
            if count > last and not to_end:
                break
    except (av.FFmpegError, MemoryError, ValueError) as error:
        return found, count, error
    return found, count, None


def shown_frames(source: Any, info: VideoInfo) -> Iterator[av.VideoFrame]:
    with open_pyav(source, info.container) as opened:
        stream = best_stream(opened)
        assert stream is not None, "there is one: `probe` looks first"
        stream.thread_type = "NONE"  # the loader's processes are the parallelism
        yield from opened.decode(stream)


def count_frames(source: Any, info: VideoInfo) -> int:
    """Frames that can be decoded, by decoding them all; what breaks off the decoding ends the count."""
    count = 0
    try:
        for _ in shown_frames(source, info):
            count += 1
    except av.FFmpegError:
        pass
    return count


def _read_torchcodec(source: Any, info: VideoInfo, choose: Choose, short_side: int | None) -> tuple[np.ndarray, Sequence[int]]:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(f"decoder: torchcodec was chosen and does not load: {error}") from None
    data = source if isinstance(source, str) else source.getvalue()
    reader = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    indices = _chosen(choose, _agreed(len(reader), info))
    unique = sorted(set(indices))
    frames = reader.get_frames_at(unique).data.numpy()
    return arranged({i: shrunk(frame, short_side) for i, frame in zip(unique, frames, strict=True)}, indices), indices


def _read_folder(
    video: VideoFile, path: str, choose: Choose, settings: VideoSettings, short_side: int | None
) -> Decoded:  # fmt: skip
    """Numbered pictures in a folder, as the official lists name them."""
    try:
        indices = _chosen(choose, video.total)
    except (IndexError, ValueError) as error:
        raise VideoError(video.path, str(error)) from None
    frames = arranged(read_pictures(video, indices, settings, short_side), indices)
    info = VideoInfo("folder", "pictures", frames.shape[2], frames.shape[1], video.total, 0.0, "pillow")
    return Decoded(frames, tuple(indices), info)


def _agreed(counted: int, info: VideoInfo) -> int:
    """The number of frames that a decoder counts, if the file has as many."""
    if info.frames not in (0, counted):
        raise ValueError(f"{info.decoder} counts {counted} frames, but there are {info.frames}; set decoder to auto or pyav")
    return counted


def _chosen(choose: Choose, count: int) -> list[int]:
    if count < 1:
        raise ValueError("no frame of it can be decoded")
    return list(choose(count))


READERS = {"decord": _read_decord, "pyav": _read_pyav, "torchcodec": _read_torchcodec}

"""The decoders: decord for files that it reads exactly, PyAV for all others, and torchcodec.

The reference is decoding from the start of the file, which is what PyAV does. decord seeks. It silently returns wrong frames in
AVI, ASF and MPEG streams, with edit lists, in 4:4:4, in open groups of pictures, and if the first frame is not a key frame; it
ignores mirroring. So container, codec, packets and display matrix decide which decoder reads a file. If `vmae-lab data check`
or `data transcode` has found that decoding from key frames gives the same frames, PyAV starts at key frames.
"""

import io
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, NamedTuple, cast

import av
import decord
import numpy as np
from av.stream import Disposition
from pydantic import ConfigDict, Field

from vmae_lab.data.decoding.container import (
    Source,
    VideoError,
    VideoFile,
    VideoSettings,
    box_types,
    cause_of,
    is_fragmented,
    open_source,
    screen,
)
from vmae_lab.data.decoding.images import AS_STORED, FrameConverter, arranged, orientation_of, read_pictures, shrunk
from vmae_lab.utils.counts import counted

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(None)

Choose = Callable[[int], Sequence[int]]  # number of frames of a video -> indices of frames to read
Frames = tuple[np.ndarray, Sequence[int]]  # uint8 `(T, H, W, 3)`, and their indices
# Containers with an exact index, and the codecs in them that decord reads exactly according to our tests.
EXACT_IN_DECORD = {
    "mov": {"h264", "hevc", "mpeg4", "vp9"},
    "matroska": {"h264", "hevc", "vp8", "vp9"},
    "flv": {"h264"},
    "avi": {"mjpeg"},
}
INEXACT_IN_TORCHCODEC = ("avi", "flv")  # packed MPEG-4 in AVI; an index of key frames only in FLV
EXACT_PIXELS = {"yuv420p", "yuvj420p", "yuvj422p"}  # decord returned broken frames after seeking in H.264 4:4:4
SMALLEST_SIDE = 16  # decord pads frames up to this side
SEEKING = "pyav_seek"  # PyAV that starts at key frames, only for files that `seeks_exactly` has verified
SPACING = 8  # smallest number of frames between two key frames at which PyAV starts
FULL_SIZE_BYTES = 8 << 20  # bytes of full-size frames that are decoded at a time

# Types in the answers of a decoder process. The requesting process validates them (`messages.py`).
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Real = Annotated[float, Field(ge=0, lt=2**63)]
CHECKED = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class VideoInfo:
    """The header of a file. Sizes are of stored frames, before rotation.

    `frames` is 0 if only decoding can count them. `announced` is the number in the header (0: none), which may be wrong.
    """

    __pydantic_config__ = CHECKED
    container: str
    codec: str
    width: Count
    height: Count
    frames: Count
    fps: Real
    decoder: str
    announced: Count = 0


@dataclass(frozen=True)
class Decoded:
    """Frames of a video, uint8 `(T, H, W, 3)`, RGB, upright, with their indices and the header of their file.

    `times`: time of each frame in seconds. Empty if the frames are not from `stream_video`, or if the file has no times.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    info: VideoInfo
    times: tuple[float, ...] = ()


def decoding_cause(error: Exception) -> str:
    """Return `cause_of`, after `cannot be decoded` for errors of FFmpeg, whose messages are short (`Invalid data found`)."""
    return f"cannot be decoded: {cause_of(error)}" if isinstance(error, av.FFmpegError) else cause_of(error)


def read_video(video: VideoFile, choose: Choose, settings: VideoSettings, short_side: int | None = None) -> Decoded:
    """Read the frames that `choose` picks, in display order, in this process. Raises VideoError.

    `choose` is called with the number of frames, and again if decoding gives a different number. Frames with a larger short
    side are reduced to `short_side` pixels directly after decoding.
    """
    if video.total >= 0:
        return _read_folder(video, choose, settings, short_side)
    source, info = open_video(video, settings)
    try:
        frames, indices = READERS[info.decoder](source, info, choose, short_side)
        return Decoded(frames, tuple(indices), info)
    except IndexError as error:  # raised by `choose`
        raise VideoError(video.path, str(error), info.codec) from None
    except (av.FFmpegError, decord.DECORDError, RuntimeError, ValueError, MemoryError) as error:
        cause = decoding_cause(error)
    if settings.decoder == "auto" and info.decoder != "pyav":  # PyAV reads some files that decord refuses
        return read_video(video, choose, with_pyav(settings), short_side)
    raise VideoError(video.path, cause, info.codec)


def with_pyav(settings: VideoSettings) -> VideoSettings:
    """Return the settings with PyAV as the decoder."""
    return settings.model_copy(update={"decoder": "pyav"})


def _read_folder(video: VideoFile, choose: Choose, settings: VideoSettings, short_side: int | None) -> Decoded:
    screen(video, settings.follow_links)
    try:
        indices = _chosen(choose, video.total)
    except (IndexError, ValueError) as error:
        raise VideoError(video.path, str(error)) from None
    frames = arranged(read_pictures(video, indices, settings, short_side), indices)
    info = VideoInfo("folder", "pictures", frames.shape[2], frames.shape[1], video.total, 0.0, "pillow")
    return Decoded(frames, tuple(indices), info)


# ----------------------------------------------------------------------------------------------------------------------
# Choice of the decoder


def open_video(video: VideoFile, settings: VideoSettings, use_check: bool = True) -> tuple[Source, VideoInfo]:
    """Return the input of a decoder and its header, which names the decoder. Checks the frame size. Raises VideoError.

    If the file was checked, the results are used instead of reading all packets, which is slow for long videos.
    """
    source, container = open_source(video, settings)
    return source, _probe(video.path, source, container, settings, video if use_check and video.is_as_checked else None)


def _probe(path: str, source: Source, container: str, settings: VideoSettings, checked: VideoFile | None) -> VideoInfo:
    boxes = box_types(source) if container == "mov" else set()
    fragmented = is_fragmented(boxes)
    if b"moof" in boxes and b"moov" not in boxes:
        raise VideoError(path, "it is a media segment (DASH, HLS) without its initialization segment; concatenate both")
    try:
        with open_pyav(source, container) as opened:
            stream = best_stream(opened)
            codec = stream.codec_context
            if codec is None:
                raise VideoError(path, "its codec is unknown")
            announced = stream.frames if 0 <= stream.frames <= opened.size else 0  # a frame has at least one byte
            info = VideoInfo(
                container, codec.codec.canonical_name, codec.width, codec.height, 0, float(stream.average_rate or 0), "pyav",
                announced,
            )  # fmt: skip
            if info.width * info.height > settings.max_pixels:
                limit = f"the limit of {settings.max_pixels / 1e6:.1f} megapixels (max_pixels)"
                raise VideoError(path, f"frames of {info.width} x {info.height} exceed {limit}", info.codec)
            if b"mvex" in boxes and b"moof" not in boxes and not announced:
                raise VideoError(path, "it is an initialization segment (DASH, HLS) without frames", info.codec)
            if checked and checked.frames > 0:
                info = replace(info, frames=checked.frames)
            elif container == "mov" and not fragmented:
                listed = sum(not entry.is_discard for entry in stream.index_entries)  # edit lists discard frames
                info = replace(info, frames=listed, announced=listed)
            torchcodec = settings.decoder == "torchcodec"
            exact = container not in INEXACT_IN_TORCHCODEC if torchcodec else _decord_may_be_exact(opened, stream, info)
        if settings.decoder == "pyav":
            return info
        if settings.decoder == "auto" and checked and checked.decoder == SEEKING:
            return replace(info, decoder=SEEKING)
        exact = exact and _turned_alike(source, info)
        if exact and not torchcodec:
            packets = info.frames if checked else _seeks_are_exact(source, info, container == "flv" or fragmented)
            exact = checked.decoder == "decord" if checked else packets > 0
            info = replace(info, frames=packets or info.frames)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if isinstance(error, VideoError):
            raise
        cause = f"cannot be opened: {cause_of(error)}"
        if container == "mov" and not boxes & {b"moov", b"moof"}:
            cause = "it is incomplete: it has no list of its frames (moov); copy, download or record it again"
        raise VideoError(path, cause) from None
    if settings.decoder == "auto":
        return replace(info, decoder="decord" if exact else "pyav")
    if not exact:
        raise VideoError(
            path, f"{settings.decoder} does not read its frames exactly and upright; set decoder to auto or pyav", info.codec
        )
    return replace(info, decoder=settings.decoder)


def _turned_alike(source: Source, info: VideoInfo) -> bool:
    """Return whether decord and torchcodec rotate frames upright. They only apply quarter turns from the header of an MP4.

    They ignore mirroring, and rotation in other headers or in the data of frames (SEI, EXIF).
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
    bare = cast(av.VideoCodecContext, av.CodecContext.create(info.codec, "r"))  # without the header of the file
    with open_pyav(source, info.container) as opened:
        stream = best_stream(opened)
        bare.extradata = stream.codec_context.extradata
        return orientation_of(next(frame for packet in opened.demux(stream) for frame in bare.decode(packet))) == AS_STORED


def _decord_may_be_exact(opened: av.container.InputContainer, stream: av.VideoStream, info: VideoInfo) -> bool:
    return (
        info.codec in EXACT_IN_DECORD.get(info.container, ())
        and stream.codec_context.pix_fmt in EXACT_PIXELS
        and min(info.width, info.height) > SMALLEST_SIDE
        and len(opened.streams.video) == 1  # decord chooses another one of several streams
        and not (info.container == "matroska" and opened.duration is None)  # decord refuses live recordings
        and opened.metadata.get("hasKeyframes") != "true"  # with this FLV index, decord is off by a few frames
        and "%" not in opened.name  # decord treats x_%d.png as a file name pattern
    )


def _seeks_are_exact(source: Source, info: VideoInfo, in_order: bool) -> int:
    """Return the number of frames if seeking to any key frame is exact, else 0.

    It is not exact in an open group of pictures (frames after a key frame that are shown before it), with an edit list, and
    with gradual refresh (key frames of H.264 without an IDR picture). With `in_order`, for FLV and fragments, B-frames are not
    exact either: near key frames, decord returns a neighboring frame.
    """
    times, key, delays = [], None, set[int]()
    for packet in packets_of(source, info):
        time = _time_of(packet)
        if packet.is_keyframe:
            key = time
            if info.codec == "h264" and not _has_idr(packet):
                return 0
        if packet.is_discard or time is None or key is None or time < key:
            return 0
        delays.add(time - (time if packet.dts is None else packet.dts))
        if in_order and len(delays) > 1:
            return 0
        times.append(time)
    return len(times) if len(times) == len(set(times)) and info.frames in (0, len(times)) else 0


def _has_idr(packet: av.Packet) -> bool:
    """Return whether a packet of H.264 has an IDR picture."""
    return any(header & 31 == 5 for header in _unit_headers(packet))


def _is_reference(packet: av.Packet) -> bool:
    """Return whether other frames may be predicted from the picture in a packet of H.264."""
    return any(1 <= header & 31 <= 5 and header >> 5 & 3 for header in _unit_headers(packet))


def _unit_headers(packet: av.Packet) -> Iterator[int]:
    """Yield the first byte of each NAL unit in a packet of H.264, as stored in MP4, Matroska and FLV."""
    view, at = memoryview(packet), 0
    while at + 4 < len(view):
        yield view[at + 4]
        at += 4 + int.from_bytes(view[at : at + 4], "big")


# ----------------------------------------------------------------------------------------------------------------------
# PyAV


def open_pyav(source: Source, container: str) -> av.container.InputContainer:
    """Open a file with one demuxer and only the file protocol, so that its content cannot make FFmpeg open other files."""
    options = {"protocol_whitelist": "file"}
    return av.open(_file_or_path(source), "r", format=container, options=options, metadata_errors="ignore")


def _file_or_path(source: Source) -> io.BytesIO | str:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def best_stream(opened: av.container.InputContainer) -> av.VideoStream:
    """Return the main video stream of a file. Raises ValueError if it has only audio (perhaps with a cover) or data."""
    stream = cast("av.VideoStream | None", opened.streams.best("video"))  # PyAV's type is a stream of any kind
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise ValueError("it has no video stream, only audio or data")
    return stream


def packets_of(source: Source, info: VideoInfo) -> Iterator[av.Packet]:
    """Yield the packets of a file, without decoding them."""
    with open_pyav(source, info.container) as opened:
        for packet in opened.demux(best_stream(opened)):
            if packet.size:  # the packet at the end of the stream is empty
                yield packet


def shown_frames(source: Source, info: VideoInfo) -> Iterator[av.VideoFrame]:
    """Yield the frames of a file, decoded from the start."""
    with open_pyav(source, info.container) as opened:
        stream = best_stream(opened)
        stream.thread_type = "NONE"  # data loader processes already run in parallel
        yield from opened.decode(stream)


def count_frames(source: Source, info: VideoInfo) -> int:
    """Return the number of frames that can be decoded, by decoding all."""
    count = 0
    with suppress(av.FFmpegError):
        for _ in shown_frames(source, info):
            count += 1
    return count


def _read_pyav(source: Source, info: VideoInfo, choose: Choose, short_side: int | None) -> Frames:
    """Decode from the start to the last wanted frame.

    If the number of frames is unknown, the number of packets is assumed, and all frames are decoded to verify it.
    """
    known, expected, indices = info.frames > 0, info.frames, list[int]()
    if known:
        indices = _chosen(choose, expected)
    else:
        with suppress(av.FFmpegError, IndexError, ValueError):
            expected = sum(1 for _ in packets_of(source, info))
            indices = _chosen(choose, expected)
    found, count, error = _decode(source, info, set(indices), short_side, to_end=not known)
    too_many_announced = known and error is None and found.keys() != set(indices)
    not_as_expected = not known and (error is not None or count != expected or not indices)
    if too_many_announced or not_as_expected:
        indices = _chosen(choose, count if error is None else count_frames(source, info))
        found, count, error = _decode(source, info, set(indices), short_side)
    missing = sorted(set(indices) - set(found))
    if missing:
        cause = cause_of(error) if error else "the video ends"
        raise ValueError(f"frame {missing[0]} cannot be decoded, only {counted(count, 'frame')}: {cause}")
    return arranged(found, indices), indices


def _decode(
    source: Source, info: VideoInfo, wanted: set[int], short_side: int | None, to_end: bool = False
) -> tuple[dict[int, np.ndarray], int, Exception | None]:
    """Return the wanted frames, the number of decoded frames, and the error that stopped decoding early, if any."""
    found: dict[int, np.ndarray] = {}
    count, last = 0, max(wanted, default=-1)
    try:
        for frame in shown_frames(source, info):
            if count == 0:
                to_pixels = FrameConverter(frame, short_side)
            if frame.is_corrupt:  # later frames are wrong, too, and their numbers are unknown
                return found, count, ValueError(f"frame {count} is damaged")
            if count in wanted:
                found[count] = to_pixels(frame)
            count += 1
            if count > last and not to_end:
                break
    except (av.FFmpegError, MemoryError, ValueError) as error:
        return found, count, error
    return found, count, None


# ----------------------------------------------------------------------------------------------------------------------
# PyAV, from key frames


class KeyFrame(NamedTuple):
    """The packet of a key frame, and the number of the frame in display order."""

    number: int
    pts: int | None
    dts: int | None
    size: int

    @property
    def time(self) -> int:
        """The time to seek to."""
        return min(time for time in (self.pts, self.dts) if time is not None)

    def is_in(self, packet: av.Packet) -> bool:
        """Return whether a packet is this one. After seeking, FFmpeg may not know one of its two times."""
        times = ((self.pts, packet.pts), (self.dts, packet.dts))
        return self.size == packet.size and any(own is not None and own == other for own, other in times)


def key_frames(source: Source, info: VideoInfo) -> tuple[list[KeyFrame], dict[int, int]]:
    """Return the key frames at which decoding may start, and the number of the frame at each time in packets.

    Reads all packets, but decodes none. Both are empty if the times of packets do not give the order of frames, or if an edit
    list hides some.
    """
    packets = [
        (packet.pts, packet.dts, packet.size, packet.is_keyframe, packet.is_discard, _time_of(packet))
        for packet in packets_of(source, info)
    ]
    times = {time for *_, time in packets if time is not None}
    if len(times) < len(packets) or any(discarded for *_, discarded, _ in packets):
        return [], {}
    numbers = {time: number for number, time in enumerate(sorted(times))}
    keys: list[KeyFrame] = []
    for pts, dts, size, is_key, _, time in packets:
        number = numbers[cast(int, time)]
        if is_key and (not keys or number >= keys[-1].number + SPACING):
            keys.append(KeyFrame(number, pts, dts, size))
    return keys, numbers


def _time_of(packet: av.Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def seeks_exactly(video: VideoFile, settings: VideoSettings) -> bool:
    """Return whether decoding from its key frames gives the same frames as decoding from the start.

    For a readable file. Compares all frames. Even and odd frames are decoded separately from key frames, so unwanted frames are
    left out, as in a reader. The result is False if the file has only one key frame. Raises VideoError.
    """
    source, info = open_video(video, settings, use_check=False)
    try:
        keys, numbers = key_frames(source, info)
        if len(keys) < 2 or keys[0].number:
            return False
        parts = (range(first, len(numbers), 2) for first in (0, 1))  # even and odd frames
        seeking = [_from_key_frames(source, info, keys, numbers, part, None) for part in parts]
        for number, frame in enumerate(shown_frames(source, info)):
            if number == 0:
                to_pixels = FrameConverter(frame, None)
            pixels = next(seeking[number % 2], None)
            if pixels is None or not np.array_equal(pixels, to_pixels(frame)):
                return False
    except (av.FFmpegError, ValueError, MemoryError):
        return False
    return number + 1 == len(numbers)


def _from_key_frames(
    source: Source,
    info: VideoInfo,
    keys: Sequence[KeyFrame],
    numbers: dict[int, int],
    wanted: Sequence[int],
    short_side: int | None,
) -> Iterator[np.ndarray]:
    """Yield the `wanted` frames, in increasing order. Decoding starts at the last key frame before each."""
    starts = [key.number for key in keys]
    with open_pyav(source, info.container) as opened:
        stream = best_stream(opened)
        stream.thread_type = "NONE"
        for key, indices in groupby(wanted, lambda index: keys[bisect(starts, index) - 1]):
            left, to_pixels = list(indices), None
            unwanted = _UnwantedFrames(info, numbers, set(left))
            for number, frame in _decoded_from(opened, stream, key, keys[0], unwanted):
                to_pixels = to_pixels or FrameConverter(frame, short_side)
                if number == left[0]:
                    yield to_pixels(frame)
                    del left[0]
                    if not left:
                        break
            else:
                raise ValueError(f"frame {left[0]} cannot be decoded from the key frame {key.number}")


class _UnwantedFrames:
    """The frames that need not be decoded: neither wanted nor needed to decode others. Only known for H.264."""

    def __init__(self, info: VideoInfo, numbers: dict[int, int], wanted: set[int]):
        self.known = info.codec == "h264" and info.container in ("mov", "matroska", "flv")
        self.numbers, self.wanted = numbers, wanted
        self.left_out: set[int] = set()

    def leave_out(self, packet: av.Packet) -> bool:
        """Return whether to leave out a packet, and remember the number of its frame."""
        number = self.numbers.get(cast(int, _time_of(packet))) if self.known else None
        if number is None or number in self.wanted or _is_reference(packet):
            return False
        self.left_out.add(number)
        return True


def _decoded_from(
    opened: av.container.InputContainer, stream: av.VideoStream, key: KeyFrame, first: KeyFrame, unwanted: _UnwantedFrames
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield frames from a key frame on, with their numbers. If seeking misses it, skip packets from the first key frame on."""
    started, number = False, key.number
    for target in (key, first):
        opened.seek(target.time, stream=stream)
        for packet in opened.demux(stream):
            started = started or key.is_in(packet)
            if not started or (packet.size and unwanted.leave_out(packet)):
                continue
            for frame in packet.decode():
                while number in unwanted.left_out:
                    number += 1
                yield number, frame
                number += 1
        if started:
            return


def _read_from_key_frames(source: Source, info: VideoInfo, choose: Choose, short_side: int | None) -> Frames:
    indices = _chosen(choose, info.frames)
    wanted, (keys, numbers) = sorted(set(indices)), key_frames(source, info)
    if not keys or len(numbers) != info.frames:
        raise ValueError(f"frames can be numbered by their times for {len(numbers)} of {info.frames}; check it again")
    frames = _from_key_frames(source, info, keys, numbers, wanted, short_side)
    return arranged(dict(zip(wanted, frames, strict=True)), indices), indices


# ----------------------------------------------------------------------------------------------------------------------
# decord and torchcodec


def _read_decord(source: Source, info: VideoInfo, choose: Choose, short_side: int | None) -> Frames:
    reader = decord.VideoReader(_file_or_path(source), num_threads=1)
    return _read_seeking(len(reader), lambda frames: reader.get_batch(frames).asnumpy(), info, choose, short_side)


def _read_torchcodec(source: Source, info: VideoInfo, choose: Choose, short_side: int | None) -> Frames:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(f"decoder is torchcodec, but it does not load: {error}") from None
    reader = VideoDecoder(source, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    return _read_seeking(len(reader), lambda frames: reader.get_frames_at(frames).data.numpy(), info, choose, short_side)


def _read_seeking(
    count: int, get_batch: Callable[[list[int]], np.ndarray], info: VideoInfo, choose: Choose, short_side: int | None
) -> Frames:
    """Read the chosen frames of `count` with a decoder that seeks, a few at a time to limit the memory."""
    if info.frames not in (0, count):
        raise ValueError(
            f"{info.decoder} counts {counted(count, 'frame')} instead of {info.frames}; set decoder to auto or pyav"
        )
    indices = _chosen(choose, count)
    unique, parts = sorted(set(indices)), list[np.ndarray]()
    each = max(1, FULL_SIZE_BYTES // (3 * info.width * info.height))
    for start in range(0, len(unique), each):
        parts += [shrunk(frame, short_side) for frame in get_batch(unique[start : start + each])]
    return arranged(dict(zip(unique, parts, strict=True)), indices), indices


def _chosen(choose: Choose, count: int) -> list[int]:
    if count < 1:
        raise ValueError("no frame can be decoded")
    return list(choose(count))


READERS = {"decord": _read_decord, "pyav": _read_pyav, SEEKING: _read_from_key_frames, "torchcodec": _read_torchcodec}

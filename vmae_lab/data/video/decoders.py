"""The decoders: decord where it is exact, PyAV (sequentially, exact by construction) where it is not, torchcodec if chosen.

Which one is decided a file, by container, codec and the container's index; what decord does with each kind of file was
measured against sequential PyAV decoding (random access is silently wrong in AVI, ASF, MPEG streams, behind edit lists,
in 4:4:4, in open groups of pictures, and where the first frame is no key frame).
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import av
import decord
import numpy as np
from av.video.reformatter import Interpolation

from vmae_lab.data.video.screen import HEAD, VideoError, VideoFile, VideoSettings, container_of, screen

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
EXACT_PIXELS = {"yuv420p", "yuvj420p", "yuvj422p"}  # after a seek into H.264 4:4:4 decord was seen to give broken frames
SMOOTH = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND  # else colours keep half the width
SMALLEST_SIDE = 16  # decord pads frames that are no larger


@dataclass(frozen=True)
class VideoInfo:
    """What a file's header says; sizes are of stored frames, before rotation. `frames` is 0 where the header does not tell."""

    container: str
    codec: str
    width: int
    height: int
    frames: int
    fps: float
    decoder: str


@dataclass(frozen=True)
class Decoded:
    """Some frames of a video: uint8 `(T, H, W, 3)` RGB, upright, their numbers, and what the file is."""

    frames: np.ndarray
    indices: tuple[int, ...]
    info: VideoInfo


def read_video(video: VideoFile, choose: Choose, settings: VideoSettings, short_side: int | None = None) -> Decoded:
    """The frames that `choose` picks, numbered in the order they are shown, in this process. Raises VideoError.

    `choose` is told how many frames there are by the header, and asked again if there turn out to be fewer. Frames whose
    short side is above `short_side` pixels are shrunk to it right behind the decoder.
    """
    path = screen(video, settings.follow_links)
    if video.total >= 0:
        return _read_folder(video, path, choose, settings, short_side)
    source, container = open_source(video, path)
    info = probe(video.path, source, container, settings, video if is_as_checked(video, path) else None)
    readers = [READERS[info.decoder]]
    if settings.decoder == "auto" and info.decoder == "decord":
        readers.append(_read_pyav)  # for what decord refuses or gives up on
    for reader in readers:
        try:
            frames, indices = reader(source, info, choose, short_side)
            return Decoded(frames, tuple(indices), info)
        except IndexError as error:  # what was asked for, not how it was read
            raise VideoError(video.path, str(error), info.codec) from None
        except (av.FFmpegError, decord.DECORDError, RuntimeError, ValueError, MemoryError) as error:
            cause = cause_of(error)
    raise VideoError(video.path, cause, info.codec)


def is_as_checked(video: VideoFile, path: str) -> bool:
    return video.decoder != "" and video.bytes == (video.size if video.size >= 0 else os.path.getsize(path))


def probe(path: str, source: Any, container: str, settings: VideoSettings, checked: VideoFile | None = None) -> VideoInfo:
    """Read a file's header, refuse what is too large, and decide on a decoder. Raises VideoError.

    The packets of a file that was `checked` are not walked through again, nor its frames counted: of a film that takes long.
    """
    try:
        with open_pyav(source, container) as opened:
            stream = best_stream(opened)
            if stream is None:
                raise VideoError(path, "no video stream in it, only sound or data")
            if stream.codec_context is None:
                raise VideoError(path, "its codec is not known")
            info = VideoInfo(
                container, stream.codec_context.codec.canonical_name, stream.codec_context.width,
                stream.codec_context.height, _frames(opened, stream, container), float(stream.average_rate or 0), "pyav",
            )  # fmt: skip
            trusted = _decord_may_be_exact(opened, stream, info) and (
                checked.decoder == "decord" if checked else _seeks_are_exact(opened, stream, info.codec)
            )
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(path, f"cannot be opened: {cause_of(error)}") from None
    if info.width * info.height > settings.max_pixels:
        limit = f"the bound of {settings.max_pixels / 1e6:.1f} megapixels (max_pixels)"
        raise VideoError(path, f"frames of {info.width} x {info.height} are larger than {limit}", info.codec)
    chosen = settings.decoder if settings.decoder != "auto" else "decord" if trusted else "pyav"
    return replace(info, decoder=chosen, frames=info.frames or (max(0, checked.frames) if checked else 0))


def open_pyav(source: Any, container: str) -> av.container.InputContainer:
    """Open with the demuxer of one container and no protocol but files: nothing in it can name another file to open."""
    if hasattr(source, "seek"):
        source.seek(0)
    return av.open(source, format=container, options={"protocol_whitelist": "file"}, metadata_errors="ignore")


def best_stream(opened: av.container.InputContainer) -> av.VideoStream | None:
    """A file's main stream of pictures; None where it has only sound or data."""
    return cast("av.VideoStream | None", opened.streams.best("video"))  # PyAV's types say: a stream of some kind


def open_source(video: VideoFile, path: str) -> tuple[Any, str]:
    """What a decoder is given (a path, or the bytes of a part of a shard), and the container it announces."""
    try:
        with open(path, "rb") as file:
            if video.offset >= 0:
                file.seek(video.offset)
                source: Any = io.BytesIO(file.read(video.size))
                head = source.getvalue()[:HEAD]
            else:
                source, head = path, file.read(HEAD)
    except OSError as error:
        raise VideoError(video.path, f"cannot be opened: {error.strerror}") from None
    try:
        return source, container_of(head)
    except ValueError as error:
        raise VideoError(video.path, str(error)) from None


def _frames(opened: av.container.InputContainer, stream: av.VideoStream, container: str) -> int:
    """Frames that the header announces; of MP4 those that are shown, where an edit list hides some. 0: it does not tell."""
    if stream.frames > opened.size:  # bytes
        return 0
    entries = stream.index_entries if container == "mov" else None  # others index key frames alone
    if not entries or stream.frames not in (0, len(entries)):
        return stream.frames
    return sum(not entry.is_discard for entry in entries)


def _decord_may_be_exact(opened: av.container.InputContainer, stream: av.VideoStream, info: VideoInfo) -> bool:
    codec = stream.codec_context
    if info.codec not in EXACT_IN_DECORD.get(info.container, ()) or codec.pix_fmt not in EXACT_PIXELS:
        return False
    if min(info.width, info.height) <= SMALLEST_SIDE or len(opened.streams.video) > 1:  # of several it takes another one
        return False
    return "%" not in opened.name  # decord takes x_%d.png for the pattern of many pictures' names


def _seeks_are_exact(opened: av.container.InputContainer, stream: av.VideoStream, codec: str) -> bool:
    """Whether decoding from a key frame on shows just the frames from it on, which decord counts on.

    It does not in an open group of pictures (frames after a key frame that are shown before it), behind an edit list,
    and where pictures are refreshed little by little: key frames of H.264 that hold no IDR picture.
    """
    times, key = [], None
    for packet in opened.demux(stream):
        if not packet.size:  # the end
            continue
        time = packet.dts if packet.pts is None else packet.pts
        if packet.is_keyframe:
            key = time
            if codec == "h264" and not _has_idr(bytes(packet)):
                return False
        if packet.is_discard or time is None or key is None or time < key:
            return False
        times.append(time)
    return len(times) == len(set(times)) and stream.frames in (0, len(times))


def _has_idr(data: bytes) -> bool:
    """Whether units of H.264, each with its length in four bytes before it, include a picture to start anew from."""
    at = 0
    while at + 4 < len(data):
        if data[at + 4] & 31 == 5:
            return True
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return False


def _read_decord(source: Any, info: VideoInfo, choose: Choose, short_side: int | None) -> tuple[np.ndarray, Sequence[int]]:
    if hasattr(source, "seek"):
        source.seek(0)
    reader = decord.VideoReader(source, num_threads=1)
    indices = _chosen(choose, len(reader))
    unique = sorted(set(indices))
    parts = []
    each = max(1, (8 << 20) // (3 * info.width * info.height))  # full-size frames held at a time
    for start in range(0, len(unique), each):
        parts += [_shrunk(frame, short_side) for frame in reader.get_batch(unique[start : start + each]).asnumpy()]
    return _arranged(dict(zip(unique, parts, strict=True)), indices), indices


def _read_pyav(source: Any, info: VideoInfo, choose: Choose, short_side: int | None) -> tuple[np.ndarray, Sequence[int]]:
    """Decode from the start up to the last frame wanted: what each number means is then beyond doubt."""
    indices = _chosen(choose, info.frames or count_frames(source, info))
    found, count, error = _walk(source, info, set(indices), short_side)
    if error is None and count and set(indices) - set(found):  # the header promised more frames than there are
        indices = _chosen(choose, count)
        found, count, error = _walk(source, info, set(indices), short_side)
    missing = sorted(set(indices) - set(found))
    if missing:
        cause = cause_of(error) if error else "there are no more"
        raise ValueError(f"{count} frames could be decoded; frame {missing[0]} could not: {cause}")
    return _arranged(found, indices), indices


def _walk(
    source: Any, info: VideoInfo, wanted: set[int], short_side: int | None
) -> tuple[dict[int, np.ndarray], int, Exception | None]:
    """Wanted frames, how many were decoded, and what stopped the decoder before the last of them, if something did."""
    found: dict[int, np.ndarray] = {}
    count, last = 0, max(wanted, default=-1)
    try:
        for frame in shown_frames(source, info):
            if count == 0:
                size = _size(frame.height, frame.width, short_side)  # a stream's size may change midway: the first one holds
            if frame.is_corrupt:  # those after it are wrong as well, and which number each has is not known
                return found, count, ValueError(f"frame {count} is damaged")
            if count in wanted:
                found[count] = _pixels(frame, *size)
            count += 1
            if count > last:
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


def _pixels(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """A frame in RGB, resized, then turned upright: uint8 `(H, W, 3)`."""
    resized = (height, width) != (frame.height, frame.width)
    pixels = frame.reformat(width, height, "rgb24", interpolation=SMOOTH if resized else None).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _shrunk(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """A decoded frame, uint8 `(H, W, 3)`, with its short side brought down to `short_side`."""
    height, width = _size(pixels.shape[0], pixels.shape[1], short_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width, height, interpolation=Interpolation.AREA).to_ndarray()


def _size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """The size whose short side is `short_side` pixels and whose shape is the same; never larger than it was."""
    short = min(height, width)
    if short_side is None or short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


def _arranged(found: dict[int, np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Frames in the order asked for, one as often as it was asked for."""
    return np.stack([found[index] for index in indices])


def _read_torchcodec(source: Any, info: VideoInfo, choose: Choose, short_side: int | None) -> tuple[np.ndarray, Sequence[int]]:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(f"decoder: torchcodec was chosen and does not load: {error}") from None
    data = source if isinstance(source, str) else source.getvalue()
    reader = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    indices = _chosen(choose, len(reader))
    unique = sorted(set(indices))
    frames = reader.get_frames_at(unique).data.numpy()
    return _arranged({i: _shrunk(frame, short_side) for i, frame in zip(unique, frames, strict=True)}, indices), indices


def _read_folder(
    video: VideoFile, path: str, choose: Choose, settings: VideoSettings, short_side: int | None
) -> Decoded:  # fmt: skip
    """Numbered pictures in a folder, as the official lists name them."""
    from PIL import Image

    info = VideoInfo("folder", "pictures", 0, 0, video.total, 0.0, "pillow")
    try:
        indices = _chosen(choose, video.total)
    except (IndexError, ValueError) as error:
        raise VideoError(video.path, str(error)) from None
    found: dict[int, np.ndarray] = {}
    for index in sorted(set(indices)):
        one = replace(video, path=f"{video.path}/{video.pattern.format(video.start + index)}", total=-1)
        try:
            with Image.open(screen(one, settings.follow_links), formats=("JPEG", "PNG", "WEBP", "BMP")) as picture:
                if picture.width * picture.height > settings.max_pixels:
                    raise VideoError(one.path, f"{picture.width} x {picture.height} is larger than max_pixels")
                found[index] = _shrunk(np.asarray(picture.convert("RGB")), short_side)
            if found[index].shape != found[min(found)].shape:
                raise VideoError(one.path, f"its size differs from that of frame {min(found)}")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(one.path, cause_of(error), info.codec) from None
    frames = _arranged(found, indices)
    return Decoded(frames, tuple(indices), replace(info, width=frames.shape[2], height=frames.shape[1]))


def _chosen(choose: Choose, count: int) -> list[int]:
    if count < 1:
        raise ValueError("no frame of it can be decoded")
    return list(choose(count))


def cause_of(error: Exception) -> str:
    """What went wrong, without the decoder's own places in its source."""
    if isinstance(error, MemoryError):
        return "it takes more memory than it may (memory_mib)"
    text = str(error) or type(error).__name__
    return text.split("Check failed: ")[-1][:300]


READERS = {"decord": _read_decord, "pyav": _read_pyav, "torchcodec": _read_torchcodec}

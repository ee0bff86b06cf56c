"""Open a video file, or the part of a tar shard that holds one, with PyAV."""

import io
from typing import Any, cast

import av
from av.stream import Disposition

from vmae_lab.data.decoding.container import HEAD, VideoError, VideoFile, container_of


def open_pyav(source: Any, container: str) -> av.container.InputContainer:
    """Open with the demuxer of one container and no protocol but files: nothing in it can name another file to open."""
    if hasattr(source, "seek"):
        source.seek(0)
    return av.open(source, format=container, options={"protocol_whitelist": "file"}, metadata_errors="ignore")


def best_stream(opened: av.container.InputContainer) -> av.VideoStream | None:
    """Return a file's main stream of pictures, or None if it has only sound (with a cover, perhaps) or data."""
    stream = cast("av.VideoStream | None", opened.streams.best("video"))  # PyAV's types say: a stream of some kind
    return None if stream is None or stream.disposition & Disposition.attached_pic else stream


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

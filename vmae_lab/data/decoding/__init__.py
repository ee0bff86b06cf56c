"""Decoding of video files. `decoders.py` reads frames, `pool.py` does it in other processes, `inspection.py` checks files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vmae_lab.data.decoding.container import DecoderUnavailable, VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.decoders import Decoded, VideoInfo, read_video
from vmae_lab.data.frame_sampling import Everything, Exactly

__all__ = [
    "Decoded", "DecoderUnavailable", "VideoError", "VideoFile", "VideoInfo", "VideoSettings", "read_frames", "read_video",
]  # fmt: skip


def read_frames(path: str | Path, indices: Sequence[int] | None = None, settings: VideoSettings | None = None) -> np.ndarray:
    """Read the frames at `indices`, or all of them, in this process: uint8 `(T, H, W, 3)`, RGB. Raises VideoError."""
    choose = Everything() if indices is None else Exactly(tuple(indices))
    return read_video(VideoFile(str(path)), choose, settings or VideoSettings()).frames

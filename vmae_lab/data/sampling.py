"""Which frames of a video make a clip."""


def dense_window(frames: int, clip_frames: int, stride: int, place: float) -> range:
    """A window of `clip_frames` frames, `stride` apart, at `place` in [0, 1) of the room there is (METHOD: dense sampling).

    Raises ValueError where the video is too short.
    """
    span = (clip_frames - 1) * stride + 1
    if frames < span:
        raise ValueError(f"a clip of {clip_frames} frames with stride {stride} spans {span} frames; the video has {frames}")
    start = int(place * (frames - span + 1))
    return range(start, start + span, stride)

"""Multi-view testing: softmax averaged over temporal clips x spatial crops (VideoMAE V2's test protocol)."""

from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import all_readable, read_videos
from vmae_lab.data.frame_sampling import DenseViews, SparseViews
from vmae_lab.data.transforms import crops_along
from vmae_lab.evaluation.inference import DEFAULT, Inference, gathered
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.counts import counted
from vmae_lab.utils.precision import Precision, autocast
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.settings import Settings
from vmae_lab.utils.shapes import Side, short_side_for


class ViewSettings(Settings):
    """Views of a test video: 5 dense clips x 3 crops in the paper (Kinetics), 2 sparse x 3 for Something-Something V2."""

    clips: int = Field(5, ge=1)
    crops: int = Field(3, ge=1)
    sampling: Literal["dense", "sparse"] = "dense"

    def choose(self, frames: int, stride: int) -> DenseViews | SparseViews:
        """Return the sampler of the frames of all clips, one clip after the other."""
        return DenseViews(frames, stride, self.clips) if self.sampling == "dense" else SparseViews(frames, self.clips)


@torch.no_grad()
def view_probabilities(
    model: nn.Module, clips: Clips, settings: ModelSettings, stride: int, views: ViewSettings, inference: Inference = DEFAULT
) -> np.ndarray:
    """Return the class probabilities per video, averaged over its views: float64 `(n, classes)`, in the order of `clips`.

    Processes share the videos, and all return the complete result. The model gets the views of one video at a time, so the
    result does not depend on the number of processes. In every process, raises MissingVideos with all unreadable videos, and
    ValueError if scores are not finite.
    """
    state = process_state()
    model.eval()
    mine = range(state.process_index, len(clips), state.num_processes)
    cut = partial(cut_views, frames=settings.frames, side=settings.side, crops=views.crops)
    choose = views.choose(settings.frames, stride)
    videos = read_videos(clips, mine, choose, short_side_for(settings.side), cut, inference.load)
    read = all_readable(mine, videos, len(clips))
    found = ((row, mean_probabilities(model, video, inference.precision)) for row, video in read)
    probabilities = np.stack(gathered(found, len(clips)))
    infinite = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if len(infinite):
        raise ValueError(
            f"the scores of {len(infinite)} of {counted(len(clips), 'video')} are not finite, e.g. of "
            f"{clips.name(int(infinite[0]))}; check whether the training of the model diverged"
        )
    return probabilities


@torch.no_grad()
def mean_probabilities(model: nn.Module, clips: Tensor, precision: Precision = "auto") -> np.ndarray:
    """Average the softmax over the views of one video: uint8 `(V, C, T, H, W)` -> class probabilities, float64 `(classes,)`."""
    device = next(model.parameters()).device
    with autocast(precision, device):
        scores = model(clips.to(device))
    return scores.cpu().double().softmax(1).mean(0).numpy()  # Apple's GPUs have no float64


def cut_views(video: Tensor, frames: int, side: Side, crops: int) -> Tensor:
    """Cut M concatenated clips into K crops each, ordered by clip: uint8 `(C, M*T, H, W)` -> `(M*K, C, T, height, width)`."""
    cut = torch.stack(crops_along(video, side, crops))
    return cut.unflatten(2, (-1, frames)).permute(2, 0, 1, 3, 4, 5).flatten(0, 1)

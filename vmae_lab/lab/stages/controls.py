"""Stage `controls`: accuracy without an encoder, from raw pixels and from each single frame. It does not depend on a seed."""

import math
from typing import Any

import numpy as np

from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.evaluation.pixel_baselines import raw_pixel_accuracy, single_frame_accuracies, single_frame_side
from vmae_lab.evaluation.probes import ProbeSettings, labelled_draws
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import Work, reading_seconds, ridge_macs
from vmae_lab.lab.stages.inputs import EvaluatedStage
from vmae_lab.lab.stages.stage import Job, Stage, build

SOLVE_MACS = 8e9  # multiply-accumulates per second of one core in float64

ONLY_EMBEDDED = "controls are only for the embedded data set"


class ControlsStage(EvaluatedStage):
    """Ridge classifiers on pixels. Only for the embedded data set."""

    kind = "controls"

    labels: int | None
    draws: int

    def run(self, job: Job) -> dict[str, Any]:
        clips = self.clips("train", self.evaluated_sources, job.compute)
        held_out, counts = self.held_out_clips(job.compute)
        assert isinstance(clips, MemmapDataset), ONLY_EMBEDDED
        assert isinstance(held_out, MemmapDataset), ONLY_EMBEDDED
        draws = labelled_draws(clips.labels, ProbeSettings(labels=self.labels, draws=self.draws), self.data.seed)
        raw = [raw_pixel_accuracy(clips, held_out, rows, self.model, self.data.stride) for rows in draws]
        frames = single_frame_accuracies(clips, held_out, self.model.side)
        metrics = {
            "raw_pixels": float(np.mean(raw)),
            "single_frame_mean": float(np.mean(frames)),
            "single_frame_best": float(np.max(frames)),
        }
        return {"metrics": metrics, "single_frames": frames, **counts}

    @property
    def macs(self) -> float:
        return self.clip_macs * self.held_out_count  # the weight in a progress bar

    @property
    def work(self) -> Work:
        """Ridge classifiers on each frame of all training clips, and on the pixels of the labeled clips."""
        world, labels, clips, classes = self.data.motionworld, self.labels or 0, self.held_out_count, self.data.classes
        assert world is not None, ONLY_EMBEDDED
        trained = len(self.evaluated_sources or self.data.sources) * classes * world.train
        pixels = 3 * self.model.frames * self.model.clip.height * self.model.clip.width
        small = 3 * math.prod(single_frame_side(self.model.side))
        solved = world.frames * ridge_macs(trained, small, clips, classes)
        solved += self.draws * ridge_macs(labels, pixels, clips, classes)
        one_frame = self.model.model_copy(update={"frames": 1})
        read_s = self.draws * (labels + clips) * reading_seconds(self.model, self.data)
        read_s += world.frames * (trained + clips) * reading_seconds(one_frame, self.data)
        return Work(own_s=solved / SOLVE_MACS + read_s)


def controls_stage(recipe: Recipe) -> Stage:
    """Build the controls stage, with the labels and draws of the probes."""
    probe = recipe.evaluate.probe
    return build(ControlsStage, recipe, labels=probe.labels, draws=probe.draws)

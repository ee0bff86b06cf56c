"""Stage `detect`: spatio-temporal action detection in the key frames of scenes (AVA)."""

from typing import Any, Literal

from vmae_lab.data.ava import write_detections
from vmae_lab.data.motionworld.writer import FRAMES_A_SECOND
from vmae_lab.evaluation.frame_map import frame_map
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.stages.cost import BACKWARD, EmbeddedVideos, Work, count_parameters
from vmae_lab.lab.stages.inputs import corrupt_videos_in, load_scenes, replaced_videos
from vmae_lab.lab.stages.stage import DETECTIONS, Job, Stage, build, input_encoder_state, training_cost
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ClipShape, ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.detect import DetectSettings, DetectTask, Whose, detect
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.shapes import Side

AVA_CLASSES = 80  # to count parameters; the linear layer is small compared with the encoder


class DetectStage(Stage):
    """Training of an action detector, evaluated by frame mAP with true boxes and with the boxes of a person detector, if any.

    The detections are written to a file.
    """

    kind = "detect"

    model: ModelSettings
    seed: int
    split: Literal["validation", "test"]
    detect: DetectSettings
    scenes_fingerprint: str

    def run(self, job: Job) -> dict[str, Any]:
        scenes, held_out = (load_scenes(self.detect.scenes, split, job.compute) for split in ("train", self.split))
        encoder = input_encoder_state(job.inputs[0]) if job.inputs else None
        corrupt = corrupt_videos_in(job.folder)
        task = DetectTask(self.model, self.detect, scenes, encoder, self.seed, corrupt)
        trained = train(task, job.folder, job.compute, job.progress)
        trained.model.class_names = tuple(scenes.actions[action] for action in sorted(scenes.actions))
        self.save(trained.model, job)
        names: dict[Whose, str] = {"true": "frame_map_true_boxes"}
        if held_out.persons is not None:
            names["persons"] = "frame_map"
        precision = job.compute.evaluation_precision
        detections = detect(trained.model, held_out, self.detect, self.model, tuple(names), precision=precision)
        scores = {name: frame_map(held_out.truth, detections[whose], held_out.evaluated) for whose, name in names.items()}
        *_, main = scores.values()  # with the boxes of the person detector, if any
        if process_state().is_main_process:
            write_detections(job.folder / DETECTIONS, detections[list(names)[-1]])
        return {
            "metrics": {name: 100 * score.mean for name, score in scores.items()}, "training": training_cost(trained),
            "per_class": {held_out.actions[action]: 100 * value for action, value in main.per_class.items() if value == value},
            "by_size": {size: 100 * value for size, value in main.by_size.items() if value == value},  # NaN if there is none
            "key_frames": len(held_out), "training_key_frames": len(scenes.labelled), **replaced_videos(corrupt),
        }  # fmt: skip

    @property
    def work(self) -> Work:
        """Training on crops, and one pass over the held-out key frames; these are not counted for listed videos."""
        shorter = self.detect.test_short_side - self.detect.test_short_side % self.model.clip.patch
        sides: tuple[Side, Side] = (self.detect.side, shorter)
        crop, frame = (
            classify_cost(
                self.model.dimensions, ClipShape(self.model.frames, side, self.model.tubelet, self.model.clip.patch), 1
            ).macs
            for side in sides
        )
        world = self.detect.scenes.motionworld
        evaluated = frame * (getattr(world, self.split) if world else 0)
        return Work(training=BACKWARD * crop * self.steps * self.detect.batch_size + evaluated)

    @property
    def parameters(self) -> int:
        return count_parameters(lambda: ActionDetector(self.model.dimensions, self.model.clip, AVA_CLASSES))

    @property
    def embedded_videos(self) -> EmbeddedVideos | None:
        world = self.detect.scenes.motionworld
        return EmbeddedVideos(world, world.seconds * FRAMES_A_SECOND, world.side) if world else None


def detect_stage(recipe: Recipe, encoder: Stage | None, seed: int) -> Stage:
    """Build a spatial detection stage, from an encoder or from scratch. Raises RecipeError."""
    settings = require(recipe.detect, "detect", "the plan detects actions")
    return build(DetectStage, recipe, encoder, seed=seed, detect=settings, scenes_fingerprint=settings.scenes.fingerprint)

"""The stages that plans are made of. Each kind is one class in a file of its own; `register` lists them all.

Builders such as `pretrain_stage(recipe, seed)` make a stage from the sections of a recipe.
"""

from vmae_lab.lab.stages.controls import ControlsStage, controls_stage
from vmae_lab.lab.stages.detect import DetectStage, detect_stage
from vmae_lab.lab.stages.distill import DistillStage, distill_stage
from vmae_lab.lab.stages.finetune import FinetuneStage, PostPretrainStage, finetune_stage, post_pretrain_stage
from vmae_lab.lab.stages.localise import FeaturesStage, LocaliseStage, features_stage, localise_stage
from vmae_lab.lab.stages.measure import MeasureStage, measure_stage
from vmae_lab.lab.stages.multi_view import ViewsStage, views_stage
from vmae_lab.lab.stages.opened import OpenedStage, opened_classifier_stage, opened_stage
from vmae_lab.lab.stages.pretrain import InitialStage, PretrainStage, initial_stage, pretrain_stage
from vmae_lab.lab.stages.probe import ProbeStage, kept_probe_stage, probe_stage, shuffled_probe_stage
from vmae_lab.lab.stages.stage import DETECTIONS, FEATURES, HELD_OUT, PREDICTIONS, SEGMENTS, WEIGHTS, Job, Stage, register

register(
    PretrainStage,
    InitialStage,
    ProbeStage,
    FinetuneStage,
    PostPretrainStage,
    DistillStage,
    ViewsStage,
    DetectStage,
    FeaturesStage,
    LocaliseStage,
    ControlsStage,
    MeasureStage,
    OpenedStage,
)

__all__ = [
    "DETECTIONS", "FEATURES", "HELD_OUT", "PREDICTIONS", "SEGMENTS", "WEIGHTS", "Job", "Stage", "controls_stage",
    "detect_stage", "distill_stage", "features_stage", "finetune_stage", "initial_stage", "kept_probe_stage",
    "localise_stage", "measure_stage", "opened_classifier_stage", "opened_stage", "post_pretrain_stage", "pretrain_stage",
    "probe_stage", "shuffled_probe_stage", "views_stage",
]  # fmt: skip

"""The registry of stages: each kind is a class in its own file, imported here with the functions that build its stages.

For example, `pretrain_stage(recipe, seed)` builds a stage from the settings of a recipe.
"""

from vmae_lab.lab.stages.controls import controls_stage
from vmae_lab.lab.stages.detect import detect_stage
from vmae_lab.lab.stages.distill import distill_stage
from vmae_lab.lab.stages.external_model import opened_classifier_stage, opened_stage
from vmae_lab.lab.stages.finetune import finetune_stage, post_pretrain_stage
from vmae_lab.lab.stages.localise import features_stage, localise_stage
from vmae_lab.lab.stages.measure import measure_stage
from vmae_lab.lab.stages.multi_view import views_stage
from vmae_lab.lab.stages.pretrain import initial_stage, pretrain_stage
from vmae_lab.lab.stages.probe import kept_probe_stage, probe_stage, shuffled_probe_stage
from vmae_lab.lab.stages.stage import DETECTIONS, FEATURES, HELD_OUT, PREDICTIONS, SEGMENTS, WEIGHTS, Job, Stage

__all__ = [
    "DETECTIONS", "FEATURES", "HELD_OUT", "PREDICTIONS", "SEGMENTS", "WEIGHTS", "Job", "Stage", "controls_stage",
    "detect_stage", "distill_stage", "features_stage", "finetune_stage", "initial_stage", "kept_probe_stage",
    "localise_stage", "measure_stage", "opened_classifier_stage", "opened_stage", "post_pretrain_stage", "pretrain_stage",
    "probe_stage", "shuffled_probe_stage", "views_stage",
]  # fmt: skip

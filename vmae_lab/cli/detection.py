"""`vmae-lab detect`, `localise`, `persons`: who does what where, when it happens, and where people are to begin with."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from vmae_lab.cli.parameters import NOTHING, Overrides, TakesPairs
from vmae_lab.cli.stages import PRETRAIN, Encoder, Parameters, Seeds, opened_encoder, read_recipe, run_stage
from vmae_lab.data.ava import open_scenes
from vmae_lab.data.ava_files import write_person_boxes
from vmae_lab.detection.person_detector import TorchvisionDetector, detect_people
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.stages import Stage, detect_stage, initial_stage, localise_stage, pretrain_stage
from vmae_lab.lab.stages.inputs import check_scenes, check_untrimmed
from vmae_lab.training.tasks.detect import DetectSettings
from vmae_lab.utils.atomic_io import make_folder

commands = typer.Typer()
BY = {"frame_map": "a person detector's boxes", "frame_map_true_boxes": "true boxes"}


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab detect smoke\n  vmae-lab detect demo --encoder scratch --seed 0\n"
    "  vmae-lab detect paper/ava --encoder MCG-NJU/videomae-base",
)
def detect(parameters: Parameters, encoder: Encoder = PRETRAIN, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Train a detector of actions on a recipe's scenes. Prints each seed's frame mAP, and the folder with all it said."""
    recipe = read_recipe(parameters, override, seed)
    settings = _settings(recipe)
    opened = opened_encoder(recipe, encoder)
    check_scenes(settings.scenes, recipe.evaluate.split, recipe.compute)

    def stage(one: int) -> Stage:
        return detect_stage(recipe, pretrain_stage(recipe, one) if encoder == PRETRAIN else opened, one)

    for one, folder, result in run_stage("detect", recipe, stage):
        said = ", ".join(
            f"{result['metrics'][name]:.1f} % by {whose}" for name, whose in BY.items() if name in result["metrics"]
        )
        print(f"seed {one}: frame mAP {said}; {result['key_frames']} {recipe.evaluate.split} key frames\n{folder}")


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab localise smoke\n  vmae-lab localise demo --encoder scratch --seed 0\n"
    "  vmae-lab localise paper/thumos14 --encoder path/to/vit_g_hybrid_pt_1200e_k710_ft.pth",
)
def localise(parameters: Parameters, encoder: Encoder = PRETRAIN, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Train a detector of actions in time on features of a recipe's untrimmed videos, which are extracted first; where the
    recipe names features that are there already, no encoder is needed. Prints each seed's mAP, and the folder with all it said.
    """
    recipe = read_recipe(parameters, override, seed)
    if recipe.localise is None:
        raise RecipeError("localise: this section is missing; params/paper/thumos14.yaml shows one")
    check_untrimmed(recipe.localise.videos, recipe.evaluate.split, recipe.compute)
    opened = opened_encoder(recipe, encoder)

    def stage(one: int) -> Stage:
        own = pretrain_stage if encoder == PRETRAIN else initial_stage
        return localise_stage(recipe, opened or own(recipe, one), one)

    for one, folder, result in run_stage("localise", recipe, stage):
        said = ", ".join(
            f"{result['metrics'][f'segment_map_{100 * at:.0f}']:.1f} % at {at:g}" for at in recipe.localise.thresholds
        )
        print(
            f"seed {one}: mAP {result['metrics']['segment_map']:.1f} % ({said}); {result['videos']} {recipe.evaluate.split} "
            f"videos\n{folder}"
        )


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExample:\n  vmae-lab persons paper/ava --split validation --out data/ava/ava_val_persons.csv",
)
def persons(
    parameters: Parameters,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the boxes are written: csv without a header, as AVA's.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Whose key frames.")] = "validation",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of torchvision's detector; its published ones if left out.")
    ] = None,
    least_score: Annotated[float, typer.Option(min=0, max=1, help="Boxes below this score are not written.")] = 0.05,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    override: Overrides = NOTHING,
) -> None:
    """Find the people in the key frames of a recipe's scenes, with torchvision's Faster R-CNN. Prints the file last."""
    recipe = read_recipe(parameters, override, ())
    scenes = open_scenes(_settings(recipe).scenes.without_persons(), split)
    make_folder(out.parent)  # told now where it cannot be, not after hours
    found = detect_people(TorchvisionDetector(weights, device), scenes, least_score)
    write_person_boxes(out, found)
    print(f"{len(found)} boxes in {len(scenes)} key frames\n{out}")


def _settings(recipe: Recipe) -> DetectSettings:
    if recipe.detect is None:
        raise RecipeError("detect: this section is missing; params/paper/ava.yaml shows one")
    return recipe.detect

"""`vmae-lab detect`, `localise`, `persons`: spatial and temporal action detection, and person boxes for spatial detection."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vmae_lab.cli.parameters import NOTHING, Device, Overrides, TakesPairs
from vmae_lab.cli.stages import PRETRAIN, Encoder, Parameters, Seeds, encoder_by_seed, read_recipe, run_stage
from vmae_lab.utils.counts import counted

commands = typer.Typer()
SHOWN_IN_AVA = "see params/paper/ava.yaml for an example"
BOXES = {"frame_map": "boxes of a person detector", "frame_map_true_boxes": "true boxes"}


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab detect smoke\n  vmae-lab detect demo --encoder scratch --seed 0\n"
    "  vmae-lab detect paper/ava --encoder MCG-NJU/videomae-base",
)
def detect(parameters: Parameters, encoder: Encoder = PRETRAIN, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Train a spatial action detector on a recipe's scenes. Prints the frame mAP and the folder of detections per seed."""
    from vmae_lab.lab.config import require
    from vmae_lab.lab.stages import detect_stage
    from vmae_lab.lab.stages.inputs import check_scenes

    recipe = read_recipe(parameters, override, seed)
    settings = require(recipe.detect, "detect", SHOWN_IN_AVA)
    start = encoder_by_seed(recipe, encoder)
    check_scenes(settings.scenes, recipe.evaluate.split, recipe.compute)
    for number, folder, result in run_stage("detect", recipe, lambda seed: detect_stage(recipe, start(seed), seed)):
        scores = ", ".join(
            f"{result['metrics'][name]:.1f}% with {boxes}" for name, boxes in BOXES.items() if name in result["metrics"]
        )
        print(
            f"seed {number}: frame mAP {scores}; "
            f"{counted(result['key_frames'], f'{recipe.evaluate.split} key frame')}\n{folder}"
        )


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab localise smoke\n  vmae-lab localise demo --encoder scratch --seed 0\n"
    "  vmae-lab localise paper/thumos14 --encoder path/to/vit_g_hybrid_pt_1200e_k710_ft.pth",
)
def localise(parameters: Parameters, encoder: Encoder = PRETRAIN, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Extract features of a recipe's untrimmed videos, and train a temporal action detector on them.

    If the recipe names a folder of pre-extracted features, no encoder is needed. Prints the mAP and the folder of detections
    per seed.
    """
    from vmae_lab.lab.config import require
    from vmae_lab.lab.stages import Stage, initial_stage, localise_stage
    from vmae_lab.lab.stages.inputs import check_untrimmed

    recipe = read_recipe(parameters, override, seed)
    settings = require(recipe.localise, "localise", "see params/paper/thumos14.yaml for an example")
    check_untrimmed(settings.videos, recipe.evaluate.split, recipe.compute)
    start = encoder_by_seed(recipe, encoder)

    def stage(seed: int) -> Stage:
        return localise_stage(recipe, start(seed) or initial_stage(recipe, seed), seed)

    for number, folder, result in run_stage("localise", recipe, stage):
        metrics = result["metrics"]
        scores = ", ".join(f"{metrics[f'segment_map_{100 * iou:.0f}']:.1f}% at IoU {iou:g}" for iou in settings.thresholds)
        videos = counted(result["videos"], f"{recipe.evaluate.split} video")
        print(f"seed {number}: mAP {metrics['segment_map']:.1f}% ({scores}); {videos}\n{folder}")


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExample:\n  vmae-lab persons paper/ava --split validation --out data/ava/ava_val_persons.csv",
)
def persons(
    parameters: Parameters,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write: CSV without a header, as in AVA.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="The split of the key frames.")] = "validation",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of torchvision's detector. Default: the published ones.")
    ] = None,
    least_score: Annotated[float, typer.Option(min=0, max=1, help="Minimum score of the boxes to write.")] = 0.05,
    device: Device = None,
    override: Overrides = NOTHING,
) -> None:
    """Detect the people in the key frames of a recipe's scenes with torchvision's Faster R-CNN. Prints the file last."""
    from vmae_lab.data.ava import open_scenes, write_person_boxes
    from vmae_lab.detection.person_detector import TorchvisionDetector, detect_people
    from vmae_lab.lab.config import require
    from vmae_lab.utils.atomic_io import make_folder
    from vmae_lab.utils.processes import chosen_device

    recipe = read_recipe(parameters, override, ())
    settings = require(recipe.detect, "detect", SHOWN_IN_AVA)
    scenes = open_scenes(settings.scenes, split, with_persons=False)
    make_folder(out.parent)  # if it cannot be written, fail now and not after hours
    found = detect_people(TorchvisionDetector(weights, str(chosen_device(device))), scenes, least_score)
    write_person_boxes(out, found)
    print(f"{counted(len(found), 'box')} in {counted(len(scenes), 'key frame')}\n{out}")

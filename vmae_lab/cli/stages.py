"""`vmae-lab pretrain`, `finetune`, `evaluate`: stages of one recipe, without a notebook. A YAML in, folders of models out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vmae_lab.cli.parameters import NOTHING, Overrides, TakesPairs, scale_parameters
from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.estimate import plan_summary, work_of
from vmae_lab.lab.plan import Arm, plan_ablation
from vmae_lab.lab.plots.palette import BLUE
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import (
    Stage,
    finetune_stage,
    opened_classifier_stage,
    opened_stage,
    pretrain_stage,
    views_stage,
)
from vmae_lab.models.checkpoints import open_checkpoint
from vmae_lab.utils.paths import project_root, runs_folder

commands = typer.Typer()
PRETRAIN, SCRATCH, FINETUNE = "pretrain", "scratch", "finetune"
AS_IT_IS = {"recipe": Arm("the recipe as it is", BLUE, "D")}
Parameters = Annotated[str, typer.Argument(metavar="PARAMS", help="A file of params/ (smoke, paper/k400), or a YAML's path.")]
Encoder = Annotated[
    str,
    typer.Option(
        metavar="WHERE",
        help="pretrain: the recipe's own pre-training, done first where it is not; scratch; or a folder, a file or the hub's "
        "name of a checkpoint.",
    ),
]
Seeds = Annotated[list[int], typer.Option(metavar="N", help="A seed, in place of the recipe's; may be repeated.")]


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab pretrain smoke\n  vmae-lab pretrain demo -p pretrain.steps 300 --seed 0 --seed 1",
)
def pretrain(parameters: Parameters, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Pre-train the model of a recipe. Prints the folder of each seed's model last."""
    recipe = read_recipe(parameters, override, seed)
    for _, folder, _ in run_stage("pretrain", recipe, lambda one: pretrain_stage(recipe, one)):
        print(folder)


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab finetune smoke\n  vmae-lab finetune demo --encoder scratch --seed 0\n"
    "  vmae-lab finetune paper/k400 --encoder MCG-NJU/videomae-base",
)
def finetune(
    parameters: Parameters,
    encoder: Encoder = PRETRAIN,
    override: Overrides = NOTHING,
    seed: Seeds = NOTHING,
) -> None:
    """Fine-tune a recipe's model on its labels. Prints each seed's accuracy on held-out clips, and the model's folder."""
    recipe = labelled(read_recipe(parameters, override, seed))
    opened = opened_encoder(recipe, encoder)

    def stage(one: int) -> Stage:
        return finetune_stage(recipe, pretrain_stage(recipe, one) if encoder == PRETRAIN else opened, one)

    for one, folder, result in run_stage("finetune", recipe, stage):
        clips = f"{result['test_clips']} {recipe.evaluate.split} clips"
        print(f"seed {one}: top-1 {result['metrics']['finetune']:.1f} % of {clips}\n{folder}")


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab evaluate smoke\n  vmae-lab evaluate demo --model runs/finetune-0123456789ab\n"
    "  vmae-lab evaluate paper/k400 --model MCG-NJU/videomae-base-finetuned-kinetics",
)
def evaluate(
    parameters: Parameters,
    model: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="finetune: what the recipe fine-tunes, done first where it is not; or a folder, a file or the hub's name of a "
            "classifier, judged once, whatever the seeds.",
        ),
    ] = FINETUNE,
    override: Overrides = NOTHING,
    seed: Seeds = NOTHING,
) -> None:
    """Judge a classifier on several views of each held-out video. Prints top-1 and top-5, and the folder of its answers."""
    recipe = labelled(read_recipe(parameters, override, seed))
    opened = None
    if model != FINETUNE:
        opened = opened_classifier_stage(recipe, open_checkpoint(model))
        recipe = recipe.with_overrides({"seeds": recipe.seeds[:1]})

    def stage(one: int) -> Stage:
        return views_stage(recipe, opened or finetune_stage(recipe, pretrain_stage(recipe, one), one), one)

    for one, folder, result in run_stage("evaluate", recipe, stage):
        said = ", ".join(_with_interval(result, name) for name in ("top1", "top5"))
        print(f"{model if opened else f'seed {one}'}: {said}; {result['test_clips']} {recipe.evaluate.split} clips\n{folder}")


def opened_encoder(recipe: Recipe, encoder: str) -> Stage | None:
    """A checkpoint as a stage, or None where the encoder is of the recipe's own or from scratch. Raises CheckpointError."""
    return None if encoder in (PRETRAIN, SCRATCH) else opened_stage(recipe, open_checkpoint(encoder))


def read_recipe(parameters: str, overrides: Sequence[str], seeds: Sequence[int]) -> Recipe:
    """The recipe of a YAML with one arm: itself. Raises RecipeError."""
    tree = {**scale_parameters(parameters, project_root() / "params", overrides), "arms": list(AS_IT_IS)}
    recipe = build_recipe(tree, AS_IT_IS)
    return recipe.with_overrides({"seeds": list(seeds)}) if seeds else recipe


def labelled(recipe: Recipe) -> Recipe:
    """The same recipe. Raises RecipeError where its data has no labels."""
    if not recipe.data.labelled:
        raise RecipeError("data.lists.train names no labelled list, so there is nothing to fine-tune on or to judge by")
    return recipe


def run_stage(name: str, recipe: Recipe, stage: Callable[[int], Stage]) -> list[tuple[int, Path, dict[str, Any]]]:
    """Say what a stage costs, and complete it and what it needs for every seed: seeds, folders and results."""
    plan = plan_ablation(name, recipe, AS_IT_IS, lambda recipe, arm, encoder, seed: {name: stage(seed)})
    plan.check_lists()
    store = RunStore(runs_folder())
    print(plan_summary(plan, store), flush=True)
    plan.run(store, work_of(plan))
    stages = {cell.seed: cell.measures[name] for cell in plan.cells}
    return [(seed, store.folder(done), store.result(done)) for seed, done in stages.items()]


def _with_interval(result: dict[str, Any], score: str) -> str:
    value, (low, high) = (result[part][f"views_{score}"] for part in ("metrics", "intervals"))
    return f"{score.replace('top', 'top-')} {value:.1f} % (95 % interval {low:.1f} to {high:.1f})"

"""`vmae-lab pretrain`, `finetune`, `evaluate`: run single stages of a recipe without a notebook."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmae_lab.cli.parameters import NOTHING, Overrides, TakesPairs, scale_parameters
from vmae_lab.utils.counts import counted

if TYPE_CHECKING:
    from vmae_lab.lab.config import Recipe
    from vmae_lab.lab.stages import Stage

commands = typer.Typer()
PRETRAIN, SCRATCH, FINETUNE = "pretrain", "scratch", "finetune"
ARM = "recipe"  # the only arm of these plans: the recipe unchanged
Parameters = Annotated[str, typer.Argument(metavar="PARAMS", help="A scale (smoke, paper/k400), or the path of a YAML file.")]
Encoder = Annotated[
    str,
    typer.Option(
        metavar="WHERE",
        help="pretrain: the recipe's pre-training, which runs first if it is not finished. scratch: an untrained encoder. "
        "Otherwise a checkpoint: a folder, a file or a name on the Hugging Face hub.",
    ),
]
Start = Annotated[
    str,
    typer.Option(
        metavar="WHERE",
        help="scratch: new weights; or a checkpoint to continue from: a folder, a file or a name on the Hugging Face hub. "
        "If it has no decoder, a new one is drawn from the seed.",
    ),
]
Classifier = Annotated[
    str,
    typer.Option(
        metavar="WHERE",
        help="finetune: the recipe's fine-tuning, which runs first if it is not finished. Otherwise a classifier, which is "
        "evaluated once for all seeds: a folder, a file or a name on the Hugging Face hub.",
    ),
]
Seeds = Annotated[list[int], typer.Option(metavar="N", help="A seed instead of those of the recipe. Can be repeated.")]


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab pretrain smoke\n  vmae-lab pretrain demo -p pretrain.steps 300 --seed 0 --seed 1\n"
    "  vmae-lab pretrain paper/k400 --encoder MCG-NJU/videomae-base",
)
def pretrain(parameters: Parameters, encoder: Start = SCRATCH, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Pre-train the model of a recipe. Prints the folder of the model per seed."""
    from vmae_lab.lab.stages import pretrain_stage

    recipe = read_recipe(parameters, override, seed)
    opened = opened_encoder(recipe, encoder)
    for _, folder, _ in run_stage("pretrain", recipe, lambda seed: pretrain_stage(recipe, seed, opened)):
        print(folder)


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab finetune smoke\n  vmae-lab finetune demo --encoder scratch --seed 0\n"
    "  vmae-lab finetune paper/k400 --encoder MCG-NJU/videomae-base",
)
def finetune(parameters: Parameters, encoder: Encoder = PRETRAIN, override: Overrides = NOTHING, seed: Seeds = NOTHING) -> None:
    """Fine-tune the model of a recipe on its labels. Prints the accuracy on held-out clips and the model's folder per seed."""
    from vmae_lab.lab.stages import finetune_stage

    recipe = labelled(read_recipe(parameters, override, seed))
    start = encoder_by_seed(recipe, encoder)
    for number, folder, result in run_stage("finetune", recipe, lambda seed: finetune_stage(recipe, start(seed), seed)):
        clips = counted(result["test_clips"], f"{recipe.evaluate.split} clip")
        best = result.get("best")
        kept = f" (weights of step {best['step']}, validation {best['validation_accuracy']:.1f}%)" if best else ""
        print(f"seed {number}: top-1 {result['metrics']['finetune']:.1f}% of {clips}{kept}\n{folder}")


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab evaluate smoke\n  vmae-lab evaluate demo --model runs/finetune-0123456789ab\n"
    "  vmae-lab evaluate paper/k400 --model MCG-NJU/videomae-base-finetuned-kinetics",
)
def evaluate(
    parameters: Parameters, model: Classifier = FINETUNE, override: Overrides = NOTHING, seed: Seeds = NOTHING
) -> None:
    """Evaluate a classifier on several views of each held-out video. Prints top-1, top-5 and the folder of predictions."""
    from vmae_lab.lab.stages import finetune_stage, opened_classifier_stage, pretrain_stage, views_stage
    from vmae_lab.models.checkpoints import open_checkpoint

    recipe = labelled(read_recipe(parameters, override, seed))
    opened = None
    if model != FINETUNE:
        opened = opened_classifier_stage(recipe, open_checkpoint(model))
        recipe = recipe.with_overrides({"seeds": recipe.seeds[:1]})

    def stage(seed: int) -> "Stage":
        return views_stage(recipe, opened or finetune_stage(recipe, pretrain_stage(recipe, seed), seed), seed)

    for number, folder, result in run_stage("evaluate", recipe, stage):
        scores = ", ".join(_with_interval(result, name) for name in ("top1", "top5"))
        print(
            f"{model if opened else f'seed {number}'}: {scores}; "
            f"{counted(result['test_clips'], f'{recipe.evaluate.split} clip')}\n{folder}"
        )


def opened_encoder(recipe: "Recipe", encoder: str) -> "Stage | None":
    """Return a checkpoint as a stage. None if the encoder is pre-trained by the recipe or untrained. Raises CheckpointError."""
    if encoder in (PRETRAIN, SCRATCH):
        return None
    from vmae_lab.lab.stages import opened_stage
    from vmae_lab.models.checkpoints import open_checkpoint

    return opened_stage(recipe, open_checkpoint(encoder))


def encoder_by_seed(recipe: "Recipe", encoder: str) -> "Callable[[int], Stage | None]":
    """Return the encoder's stage as a function of the seed. The stage is None if the encoder is untrained."""
    from vmae_lab.lab.stages import pretrain_stage

    opened = opened_encoder(recipe, encoder)
    return lambda seed: pretrain_stage(recipe, seed) if encoder == PRETRAIN else opened


def read_recipe(parameters: str, overrides: Sequence[str], seeds: Sequence[int]) -> "Recipe":
    """Return the recipe of a YAML file, with one arm. Raises RecipeError."""
    from vmae_lab.lab.config import build_recipe
    from vmae_lab.utils.paths import project_root

    recipe = build_recipe({**scale_parameters(parameters, project_root() / "params", overrides), "arms": [ARM]}, [ARM])
    return recipe.with_overrides({"seeds": list(seeds)}) if seeds else recipe


def labelled(recipe: "Recipe") -> "Recipe":
    """Return the same recipe. Raises RecipeError if its data has no labels."""
    from vmae_lab.lab.config import RecipeError

    if not recipe.data.labelled:
        raise RecipeError("data.lists.train: set a list with labels, because fine-tuning and evaluation need them")
    return recipe


def run_stage(name: str, recipe: "Recipe", stage: "Callable[[int], Stage]") -> list[tuple[int, Path, dict[str, Any]]]:
    """Print the cost of a stage, and run it and its inputs for every seed. Returns seeds, folders and results."""
    from vmae_lab.lab.estimate import plan_summary
    from vmae_lab.lab.plan import Arm, plan_ablation
    from vmae_lab.lab.plots.style import BLUE
    from vmae_lab.lab.run_store import RunStore
    from vmae_lab.utils.paths import runs_folder

    arms = {ARM: Arm("the recipe unchanged", BLUE, "D")}
    plan = plan_ablation(name, recipe, arms, lambda recipe, arm, encoder, seed: {name: stage(seed)})
    plan.check_lists()
    store = RunStore(runs_folder())
    print(plan_summary(plan, store), flush=True)
    store.complete_all(plan.stages, recipe.compute)
    stages = {cell.seed: cell.measures[name] for cell in plan.cells}
    return [(seed, store.folder(done), store.result(done)) for seed, done in stages.items()]


def _with_interval(result: dict[str, Any], score: str) -> str:
    metric = f"views_{score}"
    low, high = result["intervals"][metric]
    return f"{score.replace('top', 'top-')} {result['metrics'][metric]:.1f}% (95% interval {low:.1f} to {high:.1f})"

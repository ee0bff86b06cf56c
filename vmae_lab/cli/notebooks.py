"""`vmae-lab run`, `plan` and `report`: run notebooks at a scale, estimate what they cost, and index their reports."""

from pathlib import Path
from typing import Annotated

import typer

from vmae_lab.cli.parameters import NOTHING, Overrides, TakesPairs, by_name

commands = typer.Typer()
Notebooks = Annotated[list[Path], typer.Argument(metavar="NOTEBOOK", help="Notebooks, which run one after another.")]
Planned = Annotated[list[Path], typer.Argument(metavar="NOTEBOOK", help="Notebooks whose cost is estimated.")]
Scale = Annotated[str, typer.Option(help="A scale of params/ (smoke, demo), or the path of a YAML file.")]


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale smoke\n"
    '  vmae-lab run notebooks/ablation_decoder_mask.ipynb -p pretrain.steps 300 -p seeds "[0]"',
)
def run(notebooks: Notebooks, scale: Scale = "demo", override: Overrides = NOTHING) -> None:
    """Run notebooks at a scale and write their reports."""
    from vmae_lab.lab.notebook_run import checked_parameters, execute, require_papermill

    checked = [(path, *checked_parameters(path, scale, by_name(override))) for path in notebooks]  # before the first starts
    for _, _, planned in checked:
        planned.check_lists()
    require_papermill()
    for path, parameters, planned in checked:
        if status := execute(path, parameters, planned):
            raise typer.Exit(status)


@commands.command(cls=TakesPairs, epilog="\b\nExample:\n  vmae-lab plan notebooks/ablation_decoder_mask.ipynb --scale paper")
def plan(notebooks: Planned, scale: Scale = "demo", override: Overrides = NOTHING) -> None:
    """Estimate the cost of a run on one H200 GPU.

    Nothing is run. `vmae-lab run` first prints how long it takes on this machine.
    """
    from vmae_lab.lab.estimate import plan_summary
    from vmae_lab.lab.experiments import seeds_summary
    from vmae_lab.lab.notebook_run import checked_parameters
    from vmae_lab.lab.run_store import RunStore
    from vmae_lab.utils.paths import runs_folder

    for planned in [checked_parameters(path, scale, by_name(override))[1] for path in notebooks]:
        planned.check_lists(costed=True)
        store = RunStore(runs_folder())
        print(plan_summary(planned, store))
        if seeds := seeds_summary(planned, store):
            print(seeds)


@commands.command(epilog="\b\nExamples:\n  vmae-lab report\n  vmae-lab report --for-git")
def report(
    for_git: Annotated[
        bool,
        typer.Option("--for-git", help="Leave out what git ignores, so that the index can be committed."),
    ] = False,
) -> None:
    """Write the index of all reports: README.md and index.html in reports/. In a clone, git then shows both as changed."""
    from vmae_lab.lab.experiments import EXPERIMENTS
    from vmae_lab.lab.report.index import write_index
    from vmae_lab.utils.paths import project_root

    page = write_index(project_root() / "reports", list(EXPERIMENTS), for_git)
    print(f"index as Markdown: {page.with_name('README.md')}")
    print(f"index of results: {page}")

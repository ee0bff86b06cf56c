"""What the cells of a notebook call: open the experiment, estimate, run and report it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vmae_lab.lab.config import Recipe, read_parameters
from vmae_lab.lab.estimate import SPENT_CAPTION, plan_cost, predicted_and_actual, stage_table, this_machine
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.notebook_parameters import refuse_dotted_names
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.style import use_style
from vmae_lab.lab.report.report import write_report
from vmae_lab.lab.run_store import RunStore
from vmae_lab.utils.paths import project_path, runs_folder

__all__ = ["Plot", "Table", "open_experiment", "refuse_dotted_names"]


def open_experiment(name: str, namespace: dict[str, Any]) -> "OpenExperiment":
    """Open the experiment of a notebook with the values of its parameters cell: `lab = open_experiment("scaling", globals())`.

    Sets the style of all figures. Raises RecipeError with all problems of the parameters.
    """
    experiment = EXPERIMENTS[name]
    plan = plan_notebook(name, read_parameters(namespace, experiment.arms))
    use_style()
    return OpenExperiment(name, experiment, plan, RunStore(runs_folder()))


@dataclass(frozen=True)
class OpenExperiment:
    """An experiment with its recipe: what a notebook estimates, runs and reports."""

    name: str
    experiment: Experiment
    plan: Plan
    store: RunStore

    @property
    def recipe(self) -> Recipe:
        """All settings; `print(recipe.as_yaml())` shows them."""
        return self.plan.recipe

    @cached_property
    def rate(self) -> float:
        """Multiply-accumulates per second on this device, measured over a few steps at the first use."""
        return self.experiment.calibrate(self.recipe)

    def print_stages(self) -> None:
        """Print the number of stages of each kind and their optimizer steps. They are equal on all machines."""
        print(stage_table(self.plan).to_string(index=False))

    def estimate(self) -> None:
        """Print what remains to be computed, and how long it takes on this device."""
        print(plan_cost(self.plan, self.store, this_machine(self.rate)).sentence())

    def run(self) -> Results:
        """Run all stages that are not finished. Raises RecipeError if a list cannot be used."""
        self.plan.check_lists()
        self.store.complete_all(self.plan.stages, self.recipe.compute)
        return Results(self.plan, self.plan.rows(self.store), self.store)

    def times(self) -> Table:
        """Return the predicted and actual times of the stages."""
        return Table(predicted_and_actual(self.plan, self.store, self.rate), "cost", SPENT_CAPTION)

    def report(self, results: Results, conclusions: Sequence[str], *parts: Table | Plot | None) -> Path:
        """Write the report: conclusions, tables and figures in this order (None is skipped).

        Prints its path, and whether it replaces another one. Returns the path of its page.
        """
        shown = [part for part in parts if part is not None]
        path = write_report(self.name, self.experiment, results, conclusions, shown, self.times().frame)
        print("report:", project_path(path))
        return path

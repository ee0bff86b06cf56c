"""Plans: the stages of arms x seeds, and the tidy table of their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.own_data import list_notes, list_problems
from vmae_lab.lab.plots.style import PRINTED
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import HELD_OUT, Stage, initial_stage, pretrain_stage

Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: its label and style in figures, and dotted overrides of the recipe (or a function of it).

    `fill`: matplotlib's fill style of the marker, to distinguish arms of one color and marker. `pretrained`: if False, the arm
    starts from an untrained encoder. `post_pretrained`: supervised training on the labeled hybrid data comes before that on
    the target. `taught`: the model learns from a teacher's predictions instead of labels. `name`: the key of the arm in its
    experiment. `plan_ablation` sets it, so that the functions that build stages can use it.
    """

    label: str
    colour: str
    marker: str
    overrides: Overrides | Callable[[Recipe], Overrides] = field(default_factory=dict)
    pretrained: bool = True
    post_pretrained: bool = False
    taught: bool = False
    fill: str = "full"
    name: str = ""

    @property
    def dashes(self) -> Any:
        """Line style for matplotlib."""
        return PRINTED[self.colour][0]

    @property
    def hatch(self) -> str:
        """Hatch of bars for matplotlib."""
        return PRINTED[self.colour][1]

    def point(self, size: float) -> dict[str, Any]:
        """Return marker options for matplotlib. Stars and crosses are enlarged, since they look smaller than other markers."""
        return {
            "color": self.colour, "marker": self.marker, "fillstyle": self.fill, "markerfacecoloralt": "white",
            "markersize": size * (1.4 if self.marker in "*P" else 1),
        }  # fmt: skip

    def changes(self, recipe: Recipe) -> Overrides:
        """Return the dotted overrides for a recipe."""
        return self.overrides(recipe) if callable(self.overrides) else self.overrides


ROW = ["ablation", "arm", "seed", "metric", "value", "stage"]  # columns of the rows of results


@dataclass(frozen=True)
class Cell:
    """One arm at one seed: the stages whose results are its rows.

    `encoder`: the pre-training or the untrained model. `measures`: name -> stage. A name can have a suffix: the metric `ridge`
    of the stage `probe@unseen` becomes `ridge@unseen` in the table.
    """

    arm: str
    seed: int
    recipe: Recipe
    encoder: Stage
    measures: Mapping[str, Stage]


Encoder = Callable[[Recipe, Arm, int], Stage]
Measures = Callable[[Recipe, Arm, Stage, int], Mapping[str, Stage]]
# From the recipe and the cells with pre-training: a stage that needs no encoder, and cells of the arm "controls".
Controls = Callable[[Recipe, Sequence[Cell]], tuple[Stage | None, list[Cell]]]


@dataclass(frozen=True)
class Plan:
    """The stages of an ablation. `impossible`: arms that the recipe's token grid does not allow -> the reason.

    `control_cells`: the cells of the arm "controls", one per control of the recipe and seed.
    """

    name: str
    recipe: Recipe
    arms: Mapping[str, Arm]
    cells: list[Cell]
    controls: Stage | None
    impossible: Mapping[str, str]
    control_cells: list[Cell] = field(default_factory=list)

    @property
    def stages(self) -> list[Stage]:
        """All stages without duplicates, inputs first."""
        measures = [stage for cell in [*self.cells, *self.control_cells] for stage in cell.measures.values()]
        return in_order(measures + ([self.controls] if self.controls else []))

    @property
    def possible(self) -> list[str]:
        """The arms that run, in the order of the recipe."""
        return [arm for arm in self.recipe.arms if arm not in self.impossible]

    @property
    def pretrained(self) -> list[str]:
        return [arm for arm in self.possible if self.arms[arm].pretrained]

    def cell(self, arm: str, seed: int) -> Cell:
        return next(cell for cell in self.cells if (cell.arm, cell.seed) == (arm, seed))

    def first(self, arm: str) -> Cell:
        """Return the cell of an arm at the first seed."""
        return self.cell(arm, self.recipe.seeds[0])

    def check_lists(self, costed: bool = False) -> None:
        """Raise RecipeError with all problems of the recipe's lists, one per line. A missing list is a problem.

        `costed`: only an estimate is made, for which lists may be missing if their classes need not be counted.
        """
        data = self.recipe.data
        ahead = costed and bool((data.lists and data.lists.classes) or not data.labelled)
        if problems := _list_problems(self, ahead):
            raise RecipeError("\n".join(problems))

    def rows(self, store: RunStore) -> pd.DataFrame:
        """Return tidy results of finished stages: columns ablation, arm, seed, metric, value, and the key of the stage."""
        rows = self._measured(store, [*self.cells, *self.control_cells])
        planned = self.stages
        for cell in self.cells:
            if cell.encoder in planned and cell.encoder not in cell.measures.values():
                rows += _result_rows(store, cell.encoder, self.name, cell.arm, cell.seed)
        if self.controls:
            rows += _result_rows(store, self.controls, self.name, "controls", 0)
        return pd.DataFrame(rows, columns=ROW)

    def rows_so_far(self, store: RunStore) -> pd.DataFrame:
        """Return the rows of the cells whose stages are finished."""
        return pd.DataFrame(self._measured(store, [c for c in self.cells if all(map(store.finished, c.measures.values()))]))

    def _measured(self, store: RunStore, cells: Sequence[Cell]) -> list[dict]:
        return [
            row
            for cell in cells
            for name, stage in cell.measures.items()
            for row in _result_rows(store, stage, self.name, cell.arm, cell.seed, name)
        ]


def own_encoder(recipe: Recipe, arm: Arm, seed: int) -> Stage:
    """Return the pre-training of an arm, or the untrained model that it would start from."""
    return pretrain_stage(recipe, seed) if arm.pretrained else initial_stage(recipe, seed)


def plan_ablation(
    name: str,
    recipe: Recipe,
    arms: Mapping[str, Arm],
    measures: Measures,
    controls: Controls | None = None,
    skip_impossible: bool = False,
    encoder_of: Encoder = own_encoder,
) -> Plan:
    """Plan every arm at every seed. With `skip_impossible`, impossible arms are left out and reported.

    Raises RecipeError with all problems of the arms and of the lists that the stages read, one per line.
    """
    cells, impossible = [], {}
    for key in recipe.arms:
        arm = replace(arms[key], name=key)
        try:
            varied = recipe.with_overrides(arm.changes(recipe))
        except RecipeError as error:
            impossible[arm.name] = str(error)
            continue
        for seed in recipe.seeds:
            encoder = encoder_of(varied, arm, seed)
            cells.append(Cell(arm.name, seed, varied, encoder, measures(varied, arm, encoder, seed)))
    pretrained = [cell for cell in cells if arms[cell.arm].pretrained]
    problems: list[str] = []
    reasons = [f"arm '{key}': {reason}" for key, reason in impossible.items()]
    if impossible and not skip_impossible:
        problems = reasons
    elif impossible and not pretrained:
        problems = [f"{name}: no arm with pre-training is possible, so there is nothing to compare", *reasons]
    control_stage, control_cells = controls(recipe, pretrained) if controls else (None, [])
    plan = Plan(name, recipe, arms, cells, control_stage, impossible, control_cells)
    if problems := [*problems, *_list_problems(plan, ahead=True)]:
        raise RecipeError("\n".join(problems))
    for note in _list_notes(plan):
        print(note)
    return plan


def _splits_read(plan: Plan) -> list[str]:
    """Return the splits of the recipe's data that the stages read."""
    data, split = plan.recipe.data, plan.recipe.evaluate.split
    read = dict.fromkeys(split if name == HELD_OUT else name for stage in plan.stages for name in stage.splits)
    return [name for name in read if data.labelled or name == "pretrain"]


def _list_problems(plan: Plan, ahead: bool) -> list[str]:
    """Return what the stages need from the recipe's lists and the lists lack. It is reported before any training."""
    lists = plan.recipe.data.lists
    if lists is None:
        return []
    drawn = {pair for stage in plan.stages for pair in stage.drawn_labels.items()}
    counts = [(name, count) for name, count in sorted(drawn, key=str) if count is not None]
    problems = list_problems(lists, _splits_read(plan), counts, ahead)
    if not lists.missing("pretrain") and any(stage.learns_pretraining_labels for stage in plan.stages):
        learning = [c.arm for c in plan.cells if any(s.learns_pretraining_labels for s in in_order(c.measures.values()))]
        arms = dict.fromkeys(learning)
        problems.append(
            f"arms {', '.join(arms)} learn from labels of the videos to pre-train on, but data.lists has none. Leave these "
            "arms out"
        )
    return problems


def _list_notes(plan: Plan) -> list[str]:
    """Return remarks about lists that can be used."""
    lists, splits = plan.recipe.data.lists, _splits_read(plan)
    if lists is None or any(map(lists.missing, ["train", *splits])):
        return []
    return [note for split in splits if split != "pretrain" for note in list_notes(lists, split)]


def _result_rows(store: RunStore, stage: Stage, ablation: str, arm: str, seed: int, name: str = "") -> list[dict]:
    result = store.result(stage)
    suffix = "".join(name.partition("@")[1:])
    values = dict(result["metrics"])
    for cost in ("seconds_per_step", "peak_memory_mib"):
        if result.get("training", {}).get(cost) is not None:
            values[f"{stage.kind}_{cost}"] = result["training"][cost]
    return [
        {"ablation": ablation, "arm": arm, "seed": seed, "metric": metric + suffix, "value": value, "stage": stage.key}
        for metric, value in values.items()
    ]

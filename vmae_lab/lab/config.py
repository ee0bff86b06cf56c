"""A scale's values, and what a notebook or a command changes in them, into settings that are checked before anything runs."""

import copy
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.video_lists import ListError
from vmae_lab.evaluation.multi_view import ViewSettings
from vmae_lab.evaluation.probes import ProbeSettings
from vmae_lab.lab.notebook_file import notebook_file
from vmae_lab.lab.overrides import RecipeError, apply_overrides, kind_of, merge_sections, split_override
from vmae_lab.lab.own_data import LABELS, fit_to_lists, fit_warm_ups, list_problems
from vmae_lab.lab.scales import find_scale, params_folders, read_scale
from vmae_lab.masking import MaskSettings, draw_masks
from vmae_lab.models.sizes import SIZES, ModelSettings
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.detect import DetectSettings
from vmae_lab.training.tasks.distill import DistillSettings
from vmae_lab.training.tasks.finetune import FinetuneSettings
from vmae_lab.training.tasks.localise import LocaliseSettings
from vmae_lab.training.tasks.pretrain import PretrainSettings
from vmae_lab.utils.seeding import torch_generator

CHECKED = "_vmae_lab_parameters_checked"
# A pre-training whose target is another clip; a readout that is fitted to shuffled labels.
Control = Literal["other_clip", "shuffled_labels"]


class EvaluateSettings(BaseModel):
    """What a pre-trained encoder is judged by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["validation", "test"] = Field("test", description="search on validation, report on test")
    sources: tuple[str, ...] = Field((), description="sources evaluated on; all where empty")
    missing: Literal["refuse", "skip"] = Field(
        "refuse", description="what to do where a listed video cannot be read; skip: average over the others, and say so"
    )
    probe: ProbeSettings = ProbeSettings()
    finetune: FinetuneSettings
    finetune_labels: int | None = Field(
        LABELS, ge=1, description="labelled clips for fine-tuning, equally many per class; all if null"
    )
    views: ViewSettings = ViewSettings()
    controls: tuple[Control, ...] = Field(
        (), description="controls of the decoder-mask ablation, besides those of single frames"
    )
    label_fractions: tuple[float, ...] = Field(
        (0.01, 0.1, 1.0), description="parts of a small target's labels to fine-tune with"
    )
    margin: float = Field(2.0, gt=0, description="arms are equivalent if they differ by fewer points; changes no run")


class MeasureSettings(BaseModel):
    """What is timed and weighed on the device at hand, on the paper's clips of 16 x 224 x 224, beside what is counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes: tuple[str, ...] = Field(("small", "base"), description="sizes that are measured; the others are counted only")
    size: str = Field("base", description="the one at hand: each arm sets it")
    batch_sizes: tuple[int, ...] = Field((1, 2), min_length=1, description="clips a step; those that do not fit are said to")
    steps: int = Field(3, ge=1, description="timed steps at each batch size, after one that is not counted")
    budgets_gib: tuple[float, ...] = Field((16.0, 80.0), description="memories for which the largest batch is told")

    def model_post_init(self, _context: object) -> None:
        for size in (self.size, *self.sizes):
            self.model_of(size)

    def model_of(self, size: str) -> ModelSettings:
        return ModelSettings(size=size, frames=16, side=224)


class Recipe(BaseModel):
    """Everything that a notebook's plan is made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: str = Field(pattern=r"^[a-z0-9_-]+$", description="names the folder in reports/")
    data: DataSettings
    model: ModelSettings
    mask: MaskSettings
    pretrain: PretrainSettings
    post_pretrain: FinetuneSettings = Field(description="supervised training on the labelled hybrid, between the two others")
    distill: DistillSettings | None = Field(None, description="teaching a small student; only plans that do need it")
    detect: DetectSettings | None = Field(None, description="spatial detection; only plans that do it need it")
    localise: LocaliseSettings | None = Field(None, description="temporal detection; only plans that do it need it")
    student: str | None = Field(None, description="size of the model that is taught; the next below model.size where left out")
    evaluate: EvaluateSettings
    measure: MeasureSettings = MeasureSettings()
    compute: Compute = Compute()
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(min_length=1)

    def model_post_init(self, _context: object) -> None:
        if problems := list(_conflicts(dict(self))):
            raise ValueError("\n".join(problems))

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Recipe":
        """A copy with dotted one-offs applied, checked again. Raises RecipeError."""
        tree = self.model_dump(mode="json")
        apply_overrides(tree, overrides, Recipe)
        return _checked(tree)

    def as_yaml(self) -> str:
        """Every value, to be read: `print(recipe.as_yaml())`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=128, default_flow_style=None)


def _conflicts(sections: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong between the sections of a recipe, one line each. Sections that are wrong themselves are left out."""
    data, model, mask, evaluate, detect = (sections.get(name) for name in ("data", "model", "mask", "evaluate", "detect"))
    if sections.get("student") not in (None, *SIZES):
        yield f"student '{sections['student']}' is no model size; sizes are {', '.join(SIZES)}"
    if detect and model:
        yield from _refusals(lambda: detect.check_model(model))
    for name in ("seeds", "arms"):
        values = sections.get(name, ())
        if len(set(values)) < len(values):
            yield f"{name} {list(values)} repeat: a repeated one adds no information"
    world = data.motionworld if data else None
    if data and evaluate and (unknown := sorted(set(evaluate.sources) - set(world.sources if world else ()))):
        if world:
            yield f"evaluate.sources {unknown} are not among the embedded data's sources {list(world.sources)}"
        else:
            yield f"evaluate.sources {unknown}: list files are evaluated as a whole; leave evaluate.sources out"
    if data and world and model and (span := (model.frames - 1) * data.stride + 1) > world.frames:
        yield (
            f"model.frames {model.frames} with data.stride {data.stride} spans {span} frames; the files have "
            f"{world.frames} (data.motionworld.frames)"
        )
    if data and evaluate and data.labelled:
        yield from _wrong_labels(data, evaluate)
    if model and mask:  # a mask that the grid cannot have is refused here, not in the first step
        generators = (torch_generator(0, "check"), torch_generator(0, "check"))
        yield from _refusals(lambda: draw_masks(mask, model.clip.grid, 1, *generators))


def _refusals(check: Callable[[], object]) -> Iterator[str]:
    """The message of a check that fails."""
    try:
        check()
    except ValueError as error:
        yield str(error)


def _wrong_labels(data: DataSettings, evaluate: EvaluateSettings) -> Iterator[str]:
    """Numbers of labels that are not equally many per class, or more than there are."""
    try:
        classes = data.classes
    except ListError:  # the plan reports it with all else that is wrong with the lists
        return
    world = data.motionworld
    there = world and len(evaluate.sources or world.sources) * world.train * classes
    for name, count in _labels(evaluate):
        if count % classes:
            yield f"{name} {count} is not a multiple of the {classes} classes, which get equally many (null: all there are)"
        elif there and count > there:
            yield f"{name} {count} is more than the {there} labelled clips of the training split"


def _labels(evaluate: EvaluateSettings) -> list[tuple[str, int]]:
    """The settings that draw labelled clips, and how many."""
    counts = {"evaluate.probe.labels": evaluate.probe.labels, "evaluate.finetune_labels": evaluate.finetune_labels}
    return [(name, count) for name, count in counts.items() if count is not None]


Section = TypeVar("Section")


def require(section: Section | None, name: str, why: str = "the plan needs it") -> Section:
    """A section of a recipe that may be left out, for plans that need it. Raises RecipeError."""
    if section is None:
        raise RecipeError(f"{name}: this section is missing; {why}")
    return section


def build_recipe(
    parameters: Mapping[str, Any], arms: Collection[str] | None = None, base: Mapping[str, Any] | None = None
) -> Recipe:
    """Checked settings from plain parameters; `override` holds dotted one-offs (`{"pretrain.steps": 10}`).

    `base` are the values of a scale, into which the sections of `parameters` are merged key by key. Texts are read as their
    settings take them. `arms`, if given, are the names that a notebook knows. Raises RecipeError.
    """
    sections, overrides = split_override(parameters, Recipe)
    if base is None:
        tree, given, before = sections, set[str](), copy.deepcopy(sections)
    else:
        tree, of_the_scale = split_override(base, Recipe)
        apply_overrides(tree, of_the_scale, Recipe)
        before = copy.deepcopy(tree)
        given = merge_sections(tree, sections, Recipe)
    given |= apply_overrides(tree, overrides, Recipe)
    recipe = _checked(fit_to_lists(fit_warm_ups(tree, before, given), given))
    if arms is not None:
        for arm in recipe.arms:
            if arm not in arms:
                raise RecipeError(f"arms: there is no arm '{arm}'{_nearest(arm, arms)}; arms are {', '.join(arms)}")
    return recipe


def read_parameters(namespace: dict[str, Any], arms: Collection[str]) -> Recipe:
    """The recipe of a notebook from its own globals: `recipe = read_parameters(globals(), ARMS)` after the parameters cell.

    `scale` names the values that everything else is merged into; None stands for the scale's own value, of `arms` for all.
    papermill injects an unknown parameter with no more than a warning, so every plain value found here that is not a
    parameter is refused, the first time; later calls come from a person who may have made variables of their own.
    Raises RecipeError.
    """
    known = {*Recipe.model_fields, "override"}
    plain = {
        name: value
        for name, value in namespace.items()
        if not (name.startswith("_") or name.isupper() or name in ("In", "Out"))
        and isinstance(value, (dict, list, tuple, str, int, float))
    }
    if CHECKED not in namespace:
        for name in plain:
            if name not in known:
                raise RecipeError(
                    f"unknown parameter '{name}'{_nearest(name, known)}; parameters are {', '.join(sorted(known))}"
                )
    parameters = {name: value for name, value in plain.items() if name in known}
    recipe = build_recipe(parameters, arms, _scale_values(parameters, arms))
    namespace[CHECKED] = True
    return recipe


def _scale_values(parameters: dict[str, Any], arms: Collection[str]) -> dict[str, Any] | None:
    """Take `scale` out of a notebook's parameters for the values that it names. None if it names none, and all are given."""
    folders, scale = params_folders(notebook_file()), parameters.get("scale", "smoke")
    required = {name for name, field in Recipe.model_fields.items() if field.is_required()} - {"arms"}
    if isinstance(scale, str) and not find_scale(scale, folders) and required <= parameters.keys():
        parameters.setdefault("arms", list(arms))
        return None
    parameters.pop("scale", None)
    return {"arms": list(arms), **read_scale(str(scale), folders)}


def _checked(tree: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join(dict.fromkeys([*_explain(error, tree).split("\n"), *_more_problems(tree)]))) from None


def _more_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """What else is wrong with parameters that were refused: between the sections that are right, and with the lists."""
    sections = {}
    for name, field in Recipe.model_fields.items():
        with suppress(ValidationError):
            kind: Any = field.annotation
            sections[name] = TypeAdapter(kind).validate_python(tree.get(name, field.default))
    if "data" not in sections:
        with suppress(ValidationError, KeyError, TypeError):
            sections["data"] = DataSettings(lists=tree["data"]["lists"])
    yield from _conflicts(sections)
    data, evaluate = sections.get("data"), sections.get("evaluate")
    if data and data.lists:
        used = ["pretrain", *(["train"] if data.labelled else []), *([evaluate.split] if data.labelled and evaluate else [])]
        yield from list_problems(data.lists, used, _labels(evaluate) if evaluate else [])


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """pydantic's findings, a line each: the parameter's dotted name, what is wrong, what is accepted."""
    found: dict[str, list[str]] = {}
    for finding in error.errors():
        path = _written(finding["loc"], tree, finding["type"] == "missing")
        name = ".".join(path) or "parameters"
        if finding["type"] == "extra_forbidden":
            accepted = _fields_at(path[:-1])
            words = f"unknown parameter{_nearest(path[-1], accepted)}; accepted here: {', '.join(accepted)}"
        elif finding["type"] == "missing":
            words = "this parameter is missing"
        elif finding["type"] == "tuple_type":
            words = f"a list is expected, e.g. [1, 2] (got {finding['input']!r})"
        elif finding["type"] in ("model_type", "dataclass_type"):
            words = f"a dictionary is expected, with some of {', '.join(_fields_at(path))} (got {finding['input']!r})"
        else:
            message = finding["msg"].removeprefix("Value error, ")
            words = message if isinstance(finding["input"], dict) else f"{message} (got {finding['input']!r})"
        lines = words.split("\n") if not path else [f"{name}: {line}" for line in words.split("\n")]
        found.setdefault(name, []).extend(lines)
    # Of a value that may be of several types, what is wrong inside it says more than which other type it is not.
    return "\n".join(line for name in found if not any(one.startswith(f"{name}.") for one in found) for line in found[name])


def unknown_name(dotted: str) -> str:
    """What is wrong with a setting's dotted name; empty if there is such a setting."""
    path = dotted.split(".")
    for place, name in enumerate(path):
        if kind_of(path[: place + 1], Recipe) is Any:
            accepted = _fields_at(path[:place])
            return f"unknown parameter{_nearest(name, accepted)}; accepted here: {', '.join(accepted)}"
    return ""


def _written(location: tuple[int | str, ...], tree: Mapping[str, Any], missing: bool) -> list[str]:
    """A finding's place in the names of the recipe: without pydantic's own for the types that a value may be of."""
    path: list[str] = []
    place: Any = tree
    for part in location:
        if isinstance(part, int) if isinstance(place, list | tuple) else isinstance(place, Mapping) and part in place:
            path.append(str(part))
            place = place[part]
    return [*path, str(location[-1])] if missing else path


def _fields_at(path: list[str]) -> list[str]:
    """Names accepted in a section of the recipe. A name that is no field of its section is a key in a dictionary of them."""
    section: type[BaseModel] = Recipe
    for name in path:
        if name in section.model_fields:
            section = next(_sections_in(section.model_fields[name].annotation), section)
    return list(section.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may be or hold: `X`, `X | None`, `str | dict[str, X]`."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _nearest(name: str, accepted: Any) -> str:
    close = difflib.get_close_matches(name, list(accepted), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""

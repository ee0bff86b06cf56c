"""The recipe: all settings of a plan, from the values of a scale and a user's changes, checked before anything runs."""

import copy
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.video_lists import ListError
from vmae_lab.evaluation.multi_view import ViewSettings
from vmae_lab.evaluation.probes import ProbeSettings
from vmae_lab.lab.notebook_file import notebook_file
from vmae_lab.lab.overrides import RecipeError, apply_overrides, merge_sections, section_of, split_override, type_at
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
from vmae_lab.utils.settings import Settings

CHECKED = "_vmae_lab_parameters_checked"  # set in a notebook's namespace after its first check
# Pre-training that reconstructs another clip; a readout that is fitted to shuffled labels.
Control = Literal["other_clip", "shuffled_labels"]
Section = TypeVar("Section")

# ---------------------------------------------------------------------------------------------------------------------------
# Settings


class EvaluateSettings(Settings):
    """How a pre-trained encoder is evaluated."""

    split: Literal["validation", "test"] = Field("test", description="validation for searches, test for reports")
    sources: tuple[str, ...] = Field((), description="sources to evaluate on; all if empty")
    missing: Literal["refuse", "skip"] = Field(
        "refuse", description="if a listed video cannot be read: stop, or skip it and name it in the report"
    )
    probe: ProbeSettings = ProbeSettings()
    finetune: FinetuneSettings
    finetune_labels: int | None = Field(
        LABELS, ge=1, description="labeled clips for fine-tuning, the same number per class; all if null"
    )
    views: ViewSettings = ViewSettings()
    controls: tuple[Control, ...] = Field(
        (), description="controls of the decoder-mask ablation in addition to those on single frames"
    )
    label_fractions: tuple[float, ...] = Field(
        (0.01, 0.1, 1.0), description="fractions of a small target's labels to fine-tune with"
    )
    margin: float = Field(2.0, gt=0, description="arms that differ by fewer points are equivalent; changes no run")


class MeasureSettings(Settings):
    """How step times and peak memory are measured on this device, with the paper's clips of 16 x 224 x 224."""

    sizes: tuple[str, ...] = Field(("small", "base"), description="sizes to measure; for the others only MACs are counted")
    size: str = Field("base", description="the size that is measured; each arm sets it")
    batch_sizes: tuple[int, ...] = Field(
        (1, 2), min_length=1, description="clips per step; the report names those that do not fit"
    )
    steps: int = Field(3, ge=1, description="timed steps per batch size, after one warm-up step")
    budgets_gib: tuple[float, ...] = Field((16.0, 80.0), description="memory sizes for which the largest batch is reported")

    def model_post_init(self, _context: object) -> None:
        for size in (self.size, *self.sizes):
            self.model_of(size)

    def model_of(self, size: str) -> ModelSettings:
        return ModelSettings(size=size, frames=16, side=224)


class Recipe(Settings):
    """All settings from which a notebook's plan is made."""

    scale: str = Field(pattern=r"^[a-z0-9_-]+$", description="name of the folder in reports/")
    data: DataSettings
    model: ModelSettings
    mask: MaskSettings
    pretrain: PretrainSettings
    post_pretrain: FinetuneSettings = Field(
        description="supervised training on the labeled hybrid, between pre-training and fine-tuning"
    )
    distill: DistillSettings | None = Field(None, description="distillation into a small student, if the plan has it")
    detect: DetectSettings | None = Field(None, description="spatial action detection, if the plan has it")
    localise: LocaliseSettings | None = Field(None, description="temporal action detection, if the plan has it")
    student: str | None = Field(None, description="size of the student; if null, the next size below model.size")
    checkpoint: str | None = Field(
        None, description="of use_a_checkpoint: a folder, a file or a name on the hub; if null, the plan's own pre-training"
    )
    evaluate: EvaluateSettings
    measure: MeasureSettings = MeasureSettings()
    compute: Compute = Compute()
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(min_length=1)

    def model_post_init(self, _context: object) -> None:
        if problems := list(_conflicts(dict(self))):
            raise ValueError("\n".join(problems))

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Recipe":
        """Return a copy with dotted settings changed, checked again. Raises RecipeError."""
        tree = self.model_dump(mode="json")
        apply_overrides(tree, overrides, Recipe)
        return _checked(tree)

    def as_yaml(self) -> str:
        """Return all values as YAML: `print(recipe.as_yaml())`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=128, default_flow_style=None)


def require(section: Section | None, name: str, why: str = "the plan needs it") -> Section:
    """Return an optional section of a recipe. Raises RecipeError if the recipe does not have it."""
    if section is None:
        raise RecipeError(f"{name}: this section is missing; {why}")
    return section


# ---------------------------------------------------------------------------------------------------------------------------
# Building a recipe


def build_recipe(
    parameters: Mapping[str, Any], arms: Collection[str] | None = None, base: Mapping[str, Any] | None = None
) -> Recipe:
    """Return a checked recipe. The parameter `override` has dotted settings, e.g. `{"pretrain.steps": 10}`.

    The sections of `parameters` are merged key by key into `base`, the values of a scale. Text is converted to the type of its
    setting. If `arms` is given, only these arms are accepted, and all are the default. Raises RecipeError.
    """
    sections, overrides = split_override(parameters, Recipe)
    tree, scale_overrides = (copy.deepcopy(sections), {}) if base is None else split_override(base, Recipe)
    if arms is not None:
        tree.setdefault("arms", list(arms))
    apply_overrides(tree, scale_overrides, Recipe)
    before = copy.deepcopy(tree)
    changed = merge_sections(tree, sections, Recipe) | {*overrides}
    apply_overrides(tree, overrides, Recipe)
    recipe = _checked(fit_to_lists(fit_warm_ups(tree, before, changed), changed))
    for arm in recipe.arms:
        if arms is not None and arm not in arms:
            raise RecipeError(f"arms: unknown arm '{arm}'{_did_you_mean(arm, arms)}; accepted: {', '.join(arms)}")
    return recipe


def read_parameters(namespace: dict[str, Any], arms: Collection[str]) -> Recipe:
    """Return a notebook's recipe from its globals: `recipe = read_parameters(globals(), ARMS)` after the parameters cell.

    `scale` selects the values into which the other parameters are merged. None means the scale's own value; for `arms` it means
    all arms. Raises RecipeError. The first call refuses plain variables that are not parameters, because papermill only warns
    about unknown parameters. In later calls they are the user's own variables.
    """
    known = {*Recipe.model_fields, "override"}
    plain = {
        name: value
        for name, value in namespace.items()
        if not (name.startswith("_") or name.isupper() or name in ("In", "Out"))
        and isinstance(value, (dict, list, tuple, str, int, float))
    }
    unknown = next((name for name in plain if name not in known), None)
    if unknown and CHECKED not in namespace:
        raise RecipeError(f"unknown parameter '{unknown}'{_did_you_mean(unknown, known)}; accepted: {', '.join(sorted(known))}")
    parameters = {name: value for name, value in plain.items() if name in known}
    folders, scale = params_folders(notebook_file()), parameters.get("scale", "smoke")
    required = {name for name, field in Recipe.model_fields.items() if field.is_required()} - {"arms"}
    if isinstance(scale, str) and not find_scale(scale, folders) and required <= parameters.keys():
        recipe = build_recipe(parameters, arms)  # papermill -f my.yaml injects a whole file
    else:
        parameters.pop("scale", None)
        recipe = build_recipe(parameters, arms, read_scale(str(scale), folders))
    namespace[CHECKED] = True
    return recipe


# ---------------------------------------------------------------------------------------------------------------------------
# Checks between sections


def _conflicts(sections: Mapping[str, Any]) -> Iterator[str]:
    """Yield the conflicts between sections of a recipe, one line each. `sections` has only valid sections."""
    data, model, mask, evaluate, detect = (sections.get(name) for name in ("data", "model", "mask", "evaluate", "detect"))
    if sections.get("student") not in (None, *SIZES):
        yield f"student: '{sections['student']}' is not a model size; accepted: {', '.join(SIZES)}"
    if detect and model:
        yield from _error_of(lambda: detect.check_model(model))
    for name in ("seeds", "arms"):
        values = sections.get(name, ())
        if len(set(values)) < len(values):
            yield f"{name}: {list(values)} has duplicates; name each one once"
    world = data.motionworld if data else None
    if data and evaluate and (unknown := sorted(set(evaluate.sources) - set(world.sources if world else ()))):
        if world:
            yield f"evaluate.sources: {unknown} are not in data.motionworld.sources {list(world.sources)}"
        else:
            yield f"evaluate.sources: {unknown} cannot be selected, because lists have no sources; remove evaluate.sources"
    if data and world and model and (span := (model.frames - 1) * data.stride + 1) > world.frames:
        yield (
            f"model.frames {model.frames} with data.stride {data.stride} spans {span} frames, but the videos have only "
            f"{world.frames} (data.motionworld.frames)"
        )
    if data and evaluate and data.labelled:
        yield from _wrong_labels(data, evaluate)
    if model and mask:  # otherwise a mask that is impossible on the grid fails in the first step
        generators = (torch_generator(0, "check"), torch_generator(0, "check"))
        yield from _error_of(lambda: draw_masks(mask, model.clip.grid, 1, *generators))


def _error_of(check: Callable[[], object]) -> Iterator[str]:
    """Yield the message of a check if it fails."""
    try:
        check()
    except ValueError as error:
        yield str(error)


def _wrong_labels(data: DataSettings, evaluate: EvaluateSettings) -> Iterator[str]:
    """Yield wrong numbers of labeled clips: not a multiple of the classes, or more than the embedded data set has."""
    try:
        classes = data.classes
    except ListError:  # the plan reports it with all other problems of the lists
        return
    world = data.motionworld
    available = world and len(evaluate.sources or world.sources) * world.train * classes
    for name, count in _label_counts(evaluate):
        if count % classes:
            yield f"{name}: {count} is not a multiple of the {classes} classes, which get equal numbers (null: use all labels)"
        elif available and count > available:
            yield f"{name}: {count} is more than the {available} labeled clips of the training split (null: use all of them)"


def _label_counts(evaluate: EvaluateSettings) -> list[tuple[str, int]]:
    """Return the settings that draw labeled clips, with their numbers."""
    counts = {"evaluate.probe.labels": evaluate.probe.labels, "evaluate.finetune_labels": evaluate.finetune_labels}
    return [(name, count) for name, count in counts.items() if count is not None]


# ---------------------------------------------------------------------------------------------------------------------------
# Messages


def _checked(tree: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a tree of values. Raises RecipeError with all problems, one line each."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join(dict.fromkeys([*_explain(error, tree), *_more_problems(tree)]))) from None


def _more_problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems that pydantic does not find in an invalid recipe: between its valid sections, and in its lists."""
    sections = {}
    for name, field in Recipe.model_fields.items():
        with suppress(ValidationError):
            annotation: Any = field.annotation
            sections[name] = TypeAdapter(annotation).validate_python(tree.get(name, field.default))
    if "data" not in sections:
        with suppress(ValidationError, KeyError, TypeError):
            sections["data"] = DataSettings(lists=tree["data"]["lists"])
    yield from _conflicts(sections)
    data, evaluate = sections.get("data"), sections.get("evaluate")
    if data and data.lists:
        used = ["pretrain", *(["train"] if data.labelled else []), *([evaluate.split] if data.labelled and evaluate else [])]
        yield from list_problems(data.lists, used, _label_counts(evaluate) if evaluate else [])


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    """Return pydantic's errors as lines: the parameter's dotted name, what is wrong, what is accepted."""
    lines: dict[str, list[str]] = {}
    for problem in error.errors():
        path, kind, value = _path_in(tree, problem["loc"]), problem["type"], problem["input"]
        got = "" if isinstance(value, dict) else f" (got {value!r})"
        message = problem["msg"].removeprefix("Value error, ") + got
        if kind == "extra_forbidden":
            message = unknown_parameter(path)
        elif kind == "missing":
            path, message = [*path, str(problem["loc"][-1])], "this parameter is missing"
        elif kind == "tuple_type":
            message = f"a list is expected, e.g. [1, 2]{got}"
        elif kind == "model_type":
            message = f"a dictionary is expected, with some of {', '.join(_settings_at(path))}{got}"
        name = ".".join(path)
        lines.setdefault(name, []).extend(f"{name}: {line}" if name else line for line in message.split("\n"))
    # For a union, pydantic reports an error per type. An error inside a value is more helpful than one about the other types.
    return [line for name in lines if not any(other.startswith(f"{name}.") for other in lines) for line in lines[name]]


def _path_in(tree: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the part of pydantic's location that are names in `tree`. The rest are names of a union's types."""
    path = []
    for part in location:
        if isinstance(part, int) if isinstance(tree, list | tuple) else isinstance(tree, Mapping) and part in tree:
            path.append(str(part))
            tree = tree[part]
    return path


def unknown_parameter(path: list[str]) -> str:
    """Return an error message if there is no setting at this path, and an empty text if there is one."""
    for depth, name in enumerate(path):
        if type_at(path[: depth + 1], Recipe) is Any:
            accepted = _settings_at(path[:depth])
            return f"unknown parameter{_did_you_mean(name, accepted)}; accepted: {', '.join(accepted) or 'a single value'}"
    return ""


def _settings_at(path: list[str]) -> list[str]:
    """Return the names of the settings of a section."""
    section = section_of(type_at(path, Recipe))
    return list(section.model_fields) if section else []


def _did_you_mean(name: str, accepted: Collection[str]) -> str:
    close = difflib.get_close_matches(name, accepted, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""

"""Recipes from parameters. Wrong ones give one message, before anything runs, with the parameter and what is accepted."""

import copy
from pathlib import Path

import pytest
import yaml

from vmae_lab.lab import estimate
from vmae_lab.lab.config import RecipeError, build_recipe, read_parameters
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.run_store import RunStore

PARAMS = Path(__file__).parents[2] / "params"


@pytest.fixture
def parameters(smoke) -> dict:
    return {**copy.deepcopy(smoke), "arms": list(DECODER_MASKS)}


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["smoke", "demo", "gpu", "paper"])
def test_every_scale_is_valid_and_can_be_costed(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "pixel_seconds", lambda world: 1e-6)  # rendering large clips is slow
    parameters = yaml.safe_load((PARAMS / f"{scale}.yaml").read_text())
    assert parameters["scale"] == scale
    for name, book in EXPERIMENTS.items():
        recipe = build_recipe({"arms": list(book.arms), **parameters}, book.arms)
        if scale == "paper" and book.sources:  # pools of the embedded data set's sources, which list files do not have
            with pytest.raises(RecipeError, match=rf"{name} compares pools .*does not run on list files"):
                plan_notebook(name, recipe)
            continue
        words = estimate.plan_summary(plan_notebook(name, recipe), RunStore(tmp_path))
        assert "left to run:" in words
        assert ("measure:" if name == "cost_of_dual_masking" else "pretrain:") in words


@pytest.mark.parametrize("scale", ["smoke", "demo", "gpu", "paper"])
def test_every_scale_opens_with_what_to_expect(scale):
    head = "".join(line for line in (PARAMS / f"{scale}.yaml").read_text().splitlines(True) if line.startswith("#"))
    assert head.startswith(f"# {scale}: ")
    for word in ("Expect:", "memory", f"--scale {scale}"):
        assert word in head


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pretrian": {}}, r"pretrian: unknown parameter \(did you mean 'pretrain'\?\); accepted: scale, data"),
        ({"pretrain.stpes": 3}, r"pretrain\.stpes: unknown parameter \(did you mean 'steps'\?\)"),
        ({"evaluate.probe.labls": 3}, r"evaluate\.probe\.labls: .*'labels'"),
        ({"pretrain.steps": "many"}, r"pretrain\.steps: .*valid integer.*got 'many'"),
        ({"pretrain.lr": -1}, r"pretrain\.lr: .*greater than 0 \(got -1\)"),
        ({"mask.decoder": "tubes"}, r"mask\.decoder: .*'tube', 'running_cell', 'frame', 'random'"),
        ({"mask.encoder_ratio": 0.01}, r"tube mask on a 6x6 frame with ratio 0\.01 masks 0 of 36: nothing is masked"),
        ({"arms": ["none", "cell"]}, r"unknown arm 'cell'.*accepted: scratch, none"),
        ({"data.motionworld.sources": ["digts"]}, r"data\.motionworld: unknown motionworld sources \['digts'\]"),
        (
            {"data.motionworld.sources": ["digits", "sticks"], "evaluate.sources": ["camera"]},
            r"evaluate\.sources: \['camera'\] are not in data\.motionworld\.sources",
        ),
        ({"model.size": "tyni"}, r"model: there is no model size 'tyni'; sizes are micro, tiny"),
        ({"model.frames": 16}, r"model\.frames 16 with data\.stride 2 spans 31 frames"),
        ({"seeds": [0, 0]}, r"seeds: \[0, 0\]"),
        ({"arms": ["none", "none"]}, r"arms: \['none', 'none'\]"),
        ({"data.motionworld.trian": 3}, r"data\.motionworld\.trian: unknown parameter \(did you mean 'train'\?\)"),
        ({"evaluate.probe.labels": 20}, r"evaluate\.probe\.labels: 20 is not a multiple of the 8 classes"),
        ({"evaluate.finetune_labels": 104}, r"evaluate\.finetune_labels: 104 is more than the 64 labeled clips"),
        ({"pretrain.warmup_steps": 6}, r"pretrain: warmup_steps 6"),
        (
            {"data.lists": {"pretrain": "a"}, "data.motionworld.side": 32},
            "one of data.motionworld",
        ),
    ],
)
def test_what_is_wrong_is_named(parameters, change, words):
    with pytest.raises(RecipeError, match=words):
        build_recipe({**parameters, "override": change}, DECODER_MASKS)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            {"list": "a.csv", "wieght": 3},
            "web.wieght: unknown parameter (did you mean 'weight'?); accepted: list, root, stride, weight, frame_pattern",
        ),
        ({"list": "a.csv", "weight": -1}, "web.weight: Input should be greater than 0 (got -1)"),
        ({"weight": 1}, "web.list: this parameter is missing"),
    ],
)
def test_what_is_wrong_in_a_source_is_named_as_it_was_written(parameters, source, words):
    """The setting is a union of a list and a dictionary of sources; the message has no type names of pydantic."""
    lists = {"train": "a", "validation": "a", "test": "a", "classes": 2, "pretrain": {"web": source}}
    with pytest.raises(RecipeError) as refused:
        build_recipe({**parameters, "data": {"lists": lists}}, DECODER_MASKS)
    assert str(refused.value) == f"data.lists.pretrain.{words}"


def test_text_from_yaml_becomes_a_number(parameters):
    """PyYAML reads 1e-3 as text."""
    assert build_recipe({**parameters, "override": {"pretrain.lr": "1e-3"}}).pretrain.lr == 1e-3


def test_a_notebook_refuses_what_papermill_only_warns_about(parameters):
    namespace = {**parameters, "override": {}, "In": ["x"], "_hidden": 1, "DECODER_MASKS": {}}
    with pytest.raises(RecipeError, match=r"unknown parameter 'stpes'"):
        read_parameters({**namespace, "stpes": 10}, DECODER_MASKS)
    recipe = read_parameters(namespace, DECODER_MASKS)
    assert recipe.arms == tuple(DECODER_MASKS)
    namespace["my_variable"] = 3  # the user runs the cell again after setting a variable
    assert read_parameters(namespace, DECODER_MASKS) == recipe


@pytest.fixture
def scales(project) -> Path:
    """A project with scales of its own: `smoke`, a `demo` of three steps, and a file `mine.yaml` elsewhere."""
    (project / "params").mkdir()
    text = (PARAMS / "smoke.yaml").read_text()
    (project / "params" / "smoke.yaml").write_text(text)
    (project / "params" / "demo.yaml").write_text(text.replace("scale: smoke", "scale: demo").replace("steps: 6", "steps: 3"))
    (project / "mine.yaml").write_text(text.replace("scale: smoke", "scale: mine").replace("steps: 6", "steps: 5"))
    return project


def cell(**parameters) -> dict:
    """Return a notebook's variables after its parameters cell and papermill's injected cell."""
    return {"scale": "smoke", "seeds": None, "arms": None, "override": {}, **parameters}


def keys(recipe) -> set[str]:
    return {stage.key for stage in plan_notebook("ablation_decoder_mask", recipe).stages}


@pytest.mark.parametrize(("scale", "steps", "name"), [("smoke", 6, "smoke"), ("demo", 3, "demo"), ("{}/mine.yaml", 5, "mine")])
def test_scale_selects_a_file_of_values(scale, steps, name, scales):
    recipe = read_parameters(cell(scale=scale.format(scales)), DECODER_MASKS)
    assert (recipe.scale, recipe.pretrain.steps, recipe.arms) == (name, steps, tuple(DECODER_MASKS))


def test_the_message_about_an_unknown_scale_lists_the_scales(scales):
    with pytest.raises(RecipeError, match=r"demmo\.yaml; scales in .*/params: demo, smoke(;|$)"):
        read_parameters(cell(scale="demmo"), DECODER_MASKS)


def test_outside_of_a_checkout_the_message_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("VMAE_LAB_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="VMAE_LAB_PROJECT"):
        read_parameters(cell(), DECODER_MASKS)


def test_a_chosen_project_without_params_takes_those_of_the_package(project):
    assert read_parameters(cell(), DECODER_MASKS).scale == "smoke"


@pytest.mark.parametrize("scale", ["smoke", "demo", "mine"])
def test_a_whole_file_that_is_injected_makes_the_same_stages(scale, scales):
    """papermill -f params/demo.yaml injects all values. `mine` is not a scale of the project."""
    folder = scales if scale == "mine" else scales / "params"
    values = yaml.safe_load((folder / f"{scale}.yaml").read_text())
    recipe = read_parameters(cell(**values), DECODER_MASKS)
    assert recipe.scale == scale
    assert keys(recipe) == keys(build_recipe({**values, "arms": list(DECODER_MASKS)}))


def test_sections_are_merged_key_by_key_and_dictionaries_replaced(scales):
    recipe = read_parameters(
        cell(scale="demo", pretrain={"lr": 0.5}, evaluate={"probe": {"draws": 2}}, localise={"durations": {"all": [0, 9]}}),
        DECODER_MASKS,
    )
    assert (recipe.pretrain.lr, recipe.pretrain.steps, recipe.pretrain.batch_size) == (0.5, 3, 4)
    assert (recipe.evaluate.probe.draws, recipe.evaluate.probe.labels) == (2, 16)
    assert recipe.localise.durations == {"all": (0, 9)}
    assert recipe.localise.steps == 4


def test_another_data_source_replaces_the_one_of_the_scale(scales):
    """Settings that name parts of the old source are removed too."""
    lists = {"pretrain": "a", "train": "a", "validation": "a", "test": "a", "classes": 8}
    recipe = read_parameters(cell(data={"lists": lists}), DECODER_MASKS)
    assert recipe.data.motionworld is None
    assert recipe.data.pretrain_sources == recipe.evaluate.sources == ()
    assert recipe.data.stride == 2, "other settings stay"
    scenes = read_parameters(cell(detect={"scenes": {"motionworld": {"side": 40}}}), DECODER_MASKS).detect.scenes
    assert (scenes.motionworld.side, scenes.motionworld.train) == (40, 6), "single values of the same source can be changed"


def test_the_settings_that_differ_from_the_scale_are_passed_on(scales, monkeypatch):
    seen = {}
    monkeypatch.setattr("vmae_lab.lab.config.fit_to_lists", lambda tree, given: seen.update(given=given) or tree)
    lists = {"train": "a", "validation": "a", "test": "a", "classes": 8}
    read_parameters(
        cell(
            data={"stride": 2, "lists": lists},
            pretrain={"steps": 9},
            override={"evaluate.finetune_labels": "8", "evaluate.views": "{clips: 2}"},
        ),
        DECODER_MASKS,
    )
    assert seen["given"] == {
        "data.lists",
        "pretrain.steps",
        "evaluate.finetune_labels",
        "evaluate.views",
    }


@pytest.mark.parametrize(
    "text", [{"seeds": "[3]", "arms": "[none]"}, {"seeds": 3, "arms": "none"}, {"seeds": "3", "arms": ["none"]}]
)
def test_lists_may_be_texts_or_one_value(text, scales):
    recipe = read_parameters(cell(**text), DECODER_MASKS)
    assert (recipe.seeds, recipe.arms) == ((3,), ("none",))


def test_every_value_can_be_printed(scales):
    recipe = read_parameters(cell(), DECODER_MASKS)
    assert build_recipe(yaml.safe_load(recipe.as_yaml())) == recipe


def test_an_arm_that_is_impossible_on_the_grid_is_refused_before_anything_runs(parameters):
    odd = {"model.side": 20, "model.frames": 6, "data.stride": 1, "mask.decoder": "none", "mask.decoder_ratio": 0}
    recipe = build_recipe({**parameters, "override": odd}, DECODER_MASKS)
    with pytest.raises(RecipeError, match="different number of tokens in each phase"):
        plan_notebook("ablation_decoder_mask", recipe)


def test_arms_without_any_pretraining_are_refused(parameters):
    """There would be nothing to compare."""
    recipe = build_recipe({**parameters, "arms": ["scratch"]}, DECODER_MASKS)
    with pytest.raises(RecipeError, match=r"arms \['scratch'\]: at least one arm with pre-training is needed"):
        plan_notebook("ablation_decoder_mask", recipe)

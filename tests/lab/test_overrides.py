"""Conversion of text to the types of settings: command line, papermill, `override`, parameter files."""

import re
from pathlib import Path

import pytest
import yaml

from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.scales import read_scale

PARAMS = Path(__file__).parents[2] / "params"


def value(recipe: Recipe, dotted: str):
    found = recipe
    for name in dotted.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


def built(**override) -> Recipe:
    return build_recipe({**read_scale("own", [PARAMS]), "arms": ["one"], "override": override})


DICTIONARIES = ["a: b", "- y"]  # YAML reads these as dictionaries or lists
TEXTS = ["clips #2", "0123", "*/*.avi", "[ab]*.mp4", "no", "1e-3", "{x", "&z", "~", "it's", '"half', " x ", "2024-01-01"]


@pytest.mark.parametrize("text", TEXTS + DICTIONARIES)
def test_a_text_setting_keeps_the_text_unchanged(text):
    assert built(**{"data.lists.train": text}).data.lists.train == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_setting_of_text_or_dictionary_keeps_text_that_is_not_a_dictionary(text):
    assert built(**{"data.lists.pretrain": text}).data.lists.pretrain == text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("data.lists.root", "'*/in quotes'", "*/in quotes"),
        ("data.lists.pretrain", "null", None),
        ("data.lists.pretrain", "{web: {list: 0123, weight: 1e-3}}", {"list": "0123", "weight": 0.001}),
        ("data.lists.hold_out", "{validation: .15, test: 0.25, group: 'a #1'}", {"validation": 0.15, "group": "a #1"}),
        ("seeds", "[0, 7]", (0, 7)),
        ("seeds", "3", (3,)),
        ("seeds", "010", (10,)),
        ("arms", "[one]", ("one",)),
        ("arms", "one", ("one",)),
        ("pretrain.steps", "70", 70),
        ("pretrain.lr", "1e-3", 0.001),
        ("pretrain.clip_grad", "null", None),
        ("pretrain.betas", "[.9, 95e-2]", (0.9, 0.95)),
        ("evaluate.finetune_labels", "null", None),
        ("compute.tensorboard", "no", False),
        ("compute.tensorboard", "off", False),
        ("compute.tensorboard", "yes", True),
        ("evaluate.missing", "skip", "skip"),
        ("evaluate.probe.probes", "[knn, ridge]", ("knn", "ridge")),
    ],
)
def test_text_for_other_settings_is_read_as_yaml(name, text, expected):
    found = value(built(**{name: text}), name)
    if isinstance(expected, dict):
        found = found["web"] if isinstance(found, dict) else found
        assert {key: getattr(found, key) for key in expected} == expected
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_values_of_a_dictionary_are_converted_to_its_value_type(smoke):
    recipe = build_recipe({**smoke, "arms": ["one"], "override": {"localise.durations.long": "[2, 1e1]"}})
    assert recipe.localise.durations == {"short": (0, 2), "long": (2, 10)}


def test_whole_sections_may_be_texts(smoke):
    """papermill's -p sets them like this."""
    texts = {
        name: yaml.safe_dump(section, default_flow_style=True).strip() for name, section in smoke.items() if name != "scale"
    }
    assert build_recipe({"scale": "smoke", "arms": "[one]", **texts}) == build_recipe({**smoke, "arms": ["one"]})


def test_an_override_may_be_a_text():
    own = {**read_scale("own", [PARAMS]), "arms": ["one"]}
    recipe = build_recipe({**own, "override": "{pretrain.steps: 70, data.lists.root: 0123}"})
    assert (recipe.pretrain.steps, recipe.data.lists.root) == (70, "0123")
    with pytest.raises(RecipeError, match=r"override.*not valid YAML"):
        build_recipe({**own, "override": "{pretrain.steps: "})
    with pytest.raises(RecipeError, match=r"override.*pretrain\.steps: 10.*got '3'"):
        build_recipe({**own, "override": "3"})


@pytest.mark.parametrize(
    ("name", "text"),
    [("seeds", "[0"), ("seeds", "many"), ("pretrain.betas", "0.9"), ("pretrain", "3"), ("pretrain.steps", "0x10")],
)
def test_the_message_begins_with_the_name_of_the_wrong_setting(name, text):
    with pytest.raises(RecipeError, match=rf"^{name}"):
        built(**{name: text})


@pytest.mark.parametrize(("name", "field"), [("data.lists", "root"), ("data", "lists"), ("pretrain", "steps")])
def test_the_message_about_text_instead_of_a_section_lists_its_settings(name, field):
    with pytest.raises(RecipeError, match=rf"^{re.escape(name)}: .*\b{field}\b.*'videos'"):
        built(**{name: "videos"})


def test_text_settings_in_a_file_are_unchanged_too(tmp_path):
    own = (PARAMS / "own.yaml").read_text()
    root = "    root: videos\n"
    assert root in own
    file = tmp_path / "my.yaml"
    file.write_text(own.replace(root, f"{root}    train: 0123\n").replace("lr: 0.002", "lr: 2e-3"))
    recipe = build_recipe({**read_scale(str(file), []), "arms": ["one"]})
    assert (recipe.data.lists.train, recipe.pretrain.lr) == ("0123", 0.002)
    file.write_text(own.replace(root, f"{root}    train: */*.avi\n"))
    with pytest.raises(RecipeError, match=r"my\.yaml(.|\n)*quotes"):
        read_scale(str(file), [])


@pytest.mark.parametrize(
    "path", sorted(PARAMS.glob("*.yaml")) + sorted((PARAMS / "paper").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_scale_reads_as_yaml_reads_it(path):
    """Otherwise the stage keys would change."""
    plain = yaml.safe_load(path.read_text())
    if "base" in plain:
        base = yaml.safe_load((path.parent / plain.pop("base")).read_text())
        plain = {**base, "scale": path.stem, **plain}
    assert build_recipe({"arms": ["one"], **read_scale(str(path), [])}) == build_recipe({"arms": ["one"], **plain})


@pytest.mark.parametrize(
    ("text", "key", "line", "first"),
    [
        ("seeds: [0]\nmodel: {size: tiny}\nseeds: [1]\n", "seeds", 3, 1),
        ("data:\n  lists: {root: a}\n  stride: 4\n  lists: {root: b}\n", "lists", 4, 2),
        ("override:\n  pretrain.steps: 1\n  pretrain.steps: 2\n", "pretrain.steps", 3, 2),
        ("model: {size: tiny, side: 48, size: small}\n", "size", 1, 1),
    ],
)
def test_a_key_given_twice_is_an_error_with_file_line_and_key(text, key, line, first, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(f"{file}, line {line}: the key '{key}' is already in line {first}")):
        read_scale(str(file), [])


def test_a_key_given_twice_in_the_base_of_a_scale_names_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("seeds: [0]\nseeds: [1]\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\n")
    with pytest.raises(RecipeError, match=r"base\.yaml, line 2: the key 'seeds'"):
        read_scale(str(tmp_path / "mine.yaml"), [])


@pytest.mark.parametrize("name", ["data.lists.pretrain", "data.lists.hold_out"])
def test_a_key_given_twice_on_the_command_line_is_an_error(name):
    with pytest.raises(RecipeError, match="the key 'test' is already in line 1"):
        built(**{name: "{test: 0.1, test: 0.2}"})


def test_a_merged_mapping_may_change_its_keys(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("first: &first {a: 1, b: 2}\nsecond: &second {<<: *first, b: 3}\nthird: {<<: *second, a: 4}\n")
    assert read_scale(str(file), [])["third"] == {"a": "4", "b": "3"}

"""Settings that follow from a user's lists (a root is enough), and one message with all problems of the lists."""

import copy
import json
import time
from pathlib import Path

import pytest
import yaml

from vmae_lab.cli import main
from vmae_lab.data.video_lists import read_split
from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.own_data import fit_to_lists
from vmae_lab.lab.plan import Plan

ROOT = Path(__file__).parents[2]
OWN = "bring_your_own_videos"
NOTEBOOK = str(ROOT / "notebooks" / f"{OWN}.ipynb")
SCALES = ("smoke", "demo", "gpu", "own")


def scale(name: str) -> dict:
    return yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text())


def planned(parameters: dict, book: str = OWN, **override) -> Plan:
    arms = EXPERIMENTS[book].arms
    return plan_notebook(book, build_recipe({"arms": list(arms), **parameters, "override": override}, arms))


def refused(parameters: dict, book: str = OWN, **override) -> list[str]:
    with pytest.raises(RecipeError) as error:
        planned(parameters, book, **override)
    return str(error.value).split("\n")


@pytest.fixture
def folder(tmp_path):
    """Write empty files with names of videos. A plan opens none of them."""

    def write(sizes: dict[str, int], name: str = "my videos") -> str:
        for label, number in sizes.items():
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                (tmp_path / name / label / f"v{i:02d}.mp4").touch()
        return str(tmp_path / name)

    return write


THREE = {"wave": 4, "jump": 4, "run": 4}


@pytest.mark.parametrize("name", SCALES)
def test_a_root_alone_is_enough_at_every_scale(name, folder):
    plan = planned(scale(name), **{"data.lists.root": folder(THREE)})
    recipe = plan.recipe
    assert (recipe.data.motionworld, recipe.data.pretrain_sources, recipe.evaluate.sources) == (None, (), ())
    assert (recipe.data.lists.train, recipe.data.classes) == (".", 3)
    assert (recipe.evaluate.probe.labels, recipe.evaluate.finetune_labels) == (None, None)
    assert {stage.kind for stage in plan.stages} == {"initial", "pretrain", "probe"}


def test_a_root_is_enough_in_the_parameters_cell(folder, smoke, capsys):
    """The cell holds the smoke scale's values; the user sets `data`."""
    plan = planned({**smoke, "data": {"lists": {"root": folder(THREE)}}})
    assert plan.recipe.evaluate.probe.labels is None
    [line] = capsys.readouterr().out.splitlines()
    for name in ("data.lists.train", "data.lists.hold_out", "evaluate.probe.labels", "evaluate.finetune_labels"):
        assert name in line, "the derived settings are printed"
    again = plan.recipe.with_overrides({"evaluate.probe.labels": 3})
    assert (again.data, again.evaluate.probe.labels) == (plan.recipe.data, 3)
    assert not capsys.readouterr().out, "a recipe is fitted once"


@pytest.mark.parametrize("book", [name for name, book in EXPERIMENTS.items() if not book.sources])
def test_other_notebooks_take_own_videos_too(book, folder, smoke):
    parameters = {**smoke, "data": {"lists": {"root": folder(THREE)}}}
    if book == "downstream_temporal_detection":
        assert [line.split(" learn ")[0] for line in refused(parameters, book)] == ["arms supervised"]
        parameters["arms"] = ["untrained", "pretrained"]
    assert planned(parameters, book).stages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "base", "labels"),
    [
        ({"a": 60, "b": 60, "c": 60}, 16, 15),  # 5 per class
        ({"a": 60, "b": 60}, 16, 16),  # possible, so it is not changed
        ({"a": 3, "b": 60}, 16, None),  # an equal draw would leave two per class
        ({"a": 6, "b": 6}, 16, None),  # there are no more
        ({f"k{i}": 20 for i in range(30)}, 16, 30),
        ({"a": 400, "b": 30}, 160, "even"),  # as many as of the smaller class are trained on
    ],
)
def test_labels_follow_from_the_list(sizes, base, labels, folder):
    name = {16: "smoke", 160: "demo"}[base]
    recipe = planned(scale(name), "downstream_action_classification", **{"data.lists.root": folder(sizes)}).recipe
    for found in (recipe.evaluate.probe.labels, recipe.evaluate.finetune_labels):
        if labels == "even":
            trained_on = read_split(recipe.data.lists, "train").table["label"].value_counts()
            assert found == 2 * trained_on[1]
        else:
            assert found == labels


def test_settings_of_the_user_are_not_changed_and_reported_if_impossible(folder, smoke):
    root = folder(THREE)
    given = {"evaluate.probe.labels": 16, "evaluate.finetune_labels": 30, "evaluate.sources": ["digits"]}
    lines = refused(smoke, "downstream_action_classification", **{"data.lists.root": root, **given})
    assert [line.split(":")[0] for line in lines] == ["evaluate.sources", "evaluate.probe.labels", "evaluate.finetune_labels"]
    assert planned(smoke, **{"data.lists.root": root, "evaluate.probe.labels": 3}).recipe.evaluate.probe.labels == 3
    both = refused(smoke, **{"data.lists.root": root, "data.motionworld.train": 3})
    assert ["data.motionworld" in line and "data.lists" in line for line in both] == [True]
    unchanged = {**smoke, "data": {"lists": {"root": root}}}
    before = copy.deepcopy(unchanged)
    fit_to_lists(unchanged, ())
    assert unchanged == before


def test_defaults_and_values_of_a_file_are_fitted_and_printed(folder, smoke, capsys):
    for probe in ({"labels": 16}, {}):
        data, evaluate = {"lists": {"root": folder(THREE)}}, {**smoke["evaluate"], "sources": [], "probe": probe}
        assert planned({**smoke, "data": data, "evaluate": evaluate}).recipe.evaluate.probe.labels is None
        assert f"evaluate.probe.labels null (all labels) instead of {probe.get('labels', 160)}" in capsys.readouterr().out


def warm_ups() -> list[tuple[str, str]]:
    """Every training of every scale."""
    sections = ("pretrain", "post_pretrain", "evaluate.finetune", "distill", "detect", "localise")
    return [(name, section) for name in (*SCALES, "paper") for section in sections if part_of(scale(name), section)]


def part_of(tree: dict, section: str) -> dict | None:
    for name in section.split("."):
        tree = tree.get(name, {})
    return tree


@pytest.mark.parametrize(("name", "section"), warm_ups())
def test_a_warm_up_shrinks_with_the_steps(name, section, folder):
    tree = scale(name)
    override = {"data.lists.root": folder(THREE)} if name == "own" else {}
    before = part_of(tree, section)

    def training(**values):
        found = build_recipe({"arms": ["none"], **tree, "override": {**override, **values}})
        for part in section.split("."):
            found = getattr(found, part)
        return found

    if before["warmup_steps"] > 1:
        few = before["warmup_steps"]
        assert training(**{f"{section}.steps": few}).warmup_steps == few * few // before["steps"]
        with pytest.raises(RecipeError, match=f"{section}: warmup_steps"):
            training(**{f"{section}.steps": few, f"{section}.warmup_steps": few})
    assert training(**{f"{section}.steps": 1}).warmup_steps == 0
    assert training(**{f"{section}.steps": "1e0"}).warmup_steps == 0, "a number in another notation"
    enough = training(**{f"{section}.steps": before["warmup_steps"] + 1})
    assert enough.warmup_steps == before["warmup_steps"], "a possible warm-up does not change, so the stage keys do not either"


@pytest.mark.parametrize("sizes", [{".": 5}, {"all": 5}])
def test_a_folder_without_classes_is_pretrained_on_without_labels(sizes, folder, capsys):
    root = folder(sizes)
    for name in SCALES:
        plan = planned(scale(name), **{"data.lists.root": root})
        assert (plan.recipe.data.lists.pretrain, plan.recipe.data.lists.train) == (".", None)
        assert {stage.kind for stage in plan.stages} == {"pretrain"}
        assert "no labels" in capsys.readouterr().out
    [line] = refused(scale("own"), "downstream_action_classification", **{"data.lists.root": root})
    assert "data.lists.train" in line


def test_classes_inside_a_single_folder_are_found(folder):
    lists = planned(scale("own"), **{"data.lists.root": folder({"data set/run": 4, "data set/walk": 4})}).recipe.data.lists
    assert (lists.train, lists.class_names) == ("data set", ("run", "walk"))


def test_folders_of_splits_are_not_classes(folder):
    recipe = planned(scale("own"), **{"data.lists.root": folder({"training": 4, "val": 2})}).recipe
    assert not recipe.data.labelled


def test_a_list_whose_files_are_elsewhere_is_reported(folder):
    """For example because the root is one folder too high."""
    root = Path(folder(THREE))
    (root / "l.csv").write_text("path,label\n" + "".join(f"{k}/v0{i}.mp4,{k}\n" for k in THREE for i in range(4)))
    changes = {"data.lists.root": str(root.parent), "data.lists.train": f"{root.name}/l.csv"}
    with pytest.raises(RecipeError, match=r"data\.lists\.train: none of the .* listed files.*data\.lists\.root"):
        planned(scale("own"), **changes).check_lists()
    planned(scale("own"), **{**changes, "data.lists.root": str(root), "data.lists.train": "l.csv"}).check_lists()


def test_videos_in_both_the_training_and_the_test_list_are_reported(folder, capsys):
    root = Path(folder(THREE))
    (root / "t.csv").write_text("path,label\n" + "".join(f"{k}/v00.mp4,{k}\nother/{k}.mp4,{k}\n" for k in THREE))
    planned(scale("own"), **{"data.lists.root": str(root), "data.lists.test": "t.csv"})
    assert "data.lists.test shares 3 of 6 videos with data.lists.train" in capsys.readouterr().out


def test_folders_with_names_of_splits_are_the_splits(folder):
    """Otherwise their names would be the classes."""
    root = folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 2, "test/a": 1, "test/b": 1})
    lists = planned(scale("demo"), **{"data.lists.root": root}).recipe.data.lists
    assert (lists.train, lists.validation, lists.test, lists.hold_out) == ("train", "val", "test", None)
    assert lists.class_names == ("a", "b")
    two = planned(
        scale("own"), **{"data.lists.root": folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 2}, "two")}
    ).recipe
    assert (two.evaluate.split, two.data.lists.hold_out) == ("validation", None)


def test_lists_replace_the_held_out_parts_of_a_scale(folder):
    root = folder(THREE)
    Path(root, "l.csv").write_text("path,label\n" + "".join(f"{k}/v0{i}.mp4,{k}\n" for k in THREE for i in range(4)))
    base = {"data.lists.root": root, "data.lists.train": "l.csv"}
    for name in SCALES:
        assert planned(scale(name), **base).recipe.data.lists.hold_out.test == 0.25
        assert planned(scale(name), **base, **{"data.lists.test": "l.csv"}).recipe.data.lists.hold_out is None
        unlabelled = planned(scale(name), **{"data.lists.root": root, "data.lists.pretrain": "*/*.mp4"}).recipe.data
        assert not unlabelled.labelled
        assert planned(scale(name), **{"data.lists.root": root, "data.lists.train": "*/*.mp4"}).recipe.data.classes == 3


@pytest.mark.parametrize("number", range(2, 11))
def test_two_classes_of_any_size_can_be_planned(number, folder):
    assert planned(scale("own"), **{"data.lists.root": folder({"left": number, "right": number})}).stages


def test_a_class_with_one_video_is_reported(folder, capsys):
    planned(scale("own"), **{"data.lists.root": folder({"1": 1, "02": 2, "300": 90})})
    assert [line for line in capsys.readouterr().out.splitlines() if "hold_out" in line] == [
        "data.lists.hold_out: classes with too few videos, which test does not have: 1"
    ]


@pytest.mark.parametrize(
    ("sizes", "override", "names"),
    [
        ({"left": 1, "right": 1}, {}, ["data.lists.train", "left, right"]),
        ({"left": 5}, {"data.lists.train": "."}, ["data.lists.train", "left"]),
        ({"a": 3, "b": 3, ".": 2}, {}, ["data.lists.train", "v00.mp4"]),
        ({".": 1}, {}, [OWN, "1"]),
        ({"a": 0}, {}, ["data.lists.train", "no video files"]),
        (THREE, {"data.lists.test": "none.csv"}, ["data.lists.test", "none.csv"]),
        (THREE, {"data.lists.hold_out.group": r"person(\d)"}, ["data.lists.train", "hold_out.group"]),
        (THREE, {"data.lists.hold_out.test": 0}, ["data.lists.train", "hold_out.test"]),
        (THREE, {"data.lists.classes": 4}, ["data.lists.train", "4"]),
    ],
)
def test_an_impossible_list_is_reported_by_the_plan(sizes, override, names, folder):
    lines = refused(scale("own"), **{"data.lists.root": folder(sizes), **override})
    assert all(name in lines[0] for name in names), lines


def test_everything_is_reported_at_once(folder, smoke):
    wrong = {
        "data.lists.root": folder({"left": 1, "right": 1}), "data.stride": 0, "model.side": 25, "pretrain.steps": 0,
        "evaluate.probe.labels": 15, "evaluate.sources": ["digits"], "seeds": [0, 0],
    }  # fmt: skip
    lines = refused(smoke, **wrong)
    expected = (
        "data.stride",
        "model",
        "pretrain.steps",
        "seeds",
        "evaluate.sources",
        "evaluate.probe.labels",
        "data.lists.train",
    )
    assert sorted(line.split(":")[0].split()[0] for line in lines) == sorted(expected)


@pytest.mark.parametrize(
    ("root", "word"),
    [("none", "there is no folder"), ("three/list.csv", "data.lists.train"), ("three/*/*.mp4", "data.lists.train")],
)
def test_a_wrong_root_is_the_only_error(root, word, folder, tmp_path, project, capsys):
    folder(THREE, "three")
    (tmp_path / "three" / "list.csv").write_text("path,label\nwave/v00.mp4,wave\n")
    for command in ("plan", "run"):
        words = [command, NOTEBOOK, "--scale", "own", "-p", "data.lists.root", str(tmp_path / root)]
        assert main(words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("vmae-lab: data.lists.root: ")
        assert str(tmp_path / root) in line
        assert word in line


def test_all_commands_report_the_same_problems_at_once(folder, project, capsys):
    """Before anything is computed."""
    own = str(ROOT / "params" / "own.yaml")
    wrong = ["-p", "data.lists.root", folder({"left": 1, "right": 1}), "-p", "evaluate.finetune_labels", "7"]
    wrong += ["-p", "pretrain.steps", "0"]
    messages = set()
    for words in (["plan", NOTEBOOK, "--scale", own], ["run", NOTEBOOK, "--scale", own], ["pretrain", own], ["finetune", own]):
        start = time.monotonic()
        assert main([*words, *wrong]) == 2
        assert time.monotonic() - start < 30
        messages.add(capsys.readouterr().err)
    [message] = messages
    lines = message.removeprefix("vmae-lab: ").strip().split("\n")
    assert [line.split(":")[0].split()[0] for line in lines] == [
        "pretrain.steps", "evaluate.finetune_labels", "data.lists.train",
    ]  # fmt: skip
    assert not (project / "runs").exists()


def test_pretraining_alone_needs_no_test_split(folder, project):
    """Two classes with one video each cannot be evaluated, but can be used for pre-training."""
    recipe = build_recipe({"arms": ["none"], **scale("own"), "override": {"data.lists.root": folder({"a": 1, "b": 1})}})
    assert planned({**json.loads(recipe.model_dump_json()), "arms": ["pixels"]}, "00_dual_masking_tour").stages


def test_a_missing_list_is_reported_if_another_one_exists(folder, smoke):
    """Otherwise pre-training would run for hours before the test list is read."""
    root = folder(THREE)
    lists = {"root": root, "train": ".", "validation": "later.csv", "test": "later.csv", "classes": 3}
    [line] = refused({**smoke, "data": {"lists": lists}})
    assert line.startswith("data.lists.test: ")
    plan = planned({**smoke, "data": {"lists": {**lists, "train": "sooner.csv"}}})
    assert isinstance(plan.recipe, Recipe), "an estimate needs no list"

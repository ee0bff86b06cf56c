"""Accuracy against compute: the stages of a curve, and the comparison at equal compute, calculated by hand."""

import shutil

import numpy as np
import pandas as pd
import pytest

from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.experiments import ablation_decoder_mask as experiment
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.plots import curves
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import WEIGHTS, kept_probe_stage, pretrain_stage, probe, probe_stage, shuffled_probe_stage
from vmae_lab.lab.stages.cost import step_macs
from vmae_lab.lab.statistics import compare, compare_differences
from vmae_lab.training.checkpoint import kept_file
from vmae_lab.utils.atomic_io import make_folder, write_json

NONE, ARM = [(2, 10.0), (4, 20.0), (6, 24.0)], [(2, 9.0), (4, 19.0), (6, 23.5)]  # step, value


def curve_of(values: dict[str, dict[int, list[tuple[int, float]]]], macs: dict[str, float]) -> pd.DataFrame:
    """values: arm -> seed -> points."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "step": step, "macs": step * macs[arm], "value": value}
            for arm, seeds in values.items()
            for seed, points in seeds.items()
            for step, value in points
        ]
    )


@pytest.fixture
def curve() -> pd.DataFrame:
    """An arm at half the cost per step of the baseline. At the second seed, values are 1 higher, the arm's last value 2."""
    higher = [(step, value + 1) for step, value in NONE], [(2, 10.0), (4, 20.0), (6, 25.5)]
    return curve_of(
        {"none": {0: NONE, 1: higher[0]}, "running_cell_50": {0: ARM, 1: higher[1]}}, {"none": 10.0, "running_cell_50": 5.0}
    )


def test_at_equal_steps(curve):
    pairs = experiment.at_equal_steps(curve, "none").set_index(["seed", "step"])
    assert set(pairs.arm) == {"running_cell_50"}
    assert pairs.baseline.to_dict() == {(0, 2): 10, (0, 4): 20, (0, 6): 24, (1, 2): 11, (1, 4): 21, (1, 6): 25}


def test_at_equal_compute(curve):
    """30 MACs (step 6 of the arm) are step 3 of the baseline, halfway between 10 and 20. 10 MACs are before its first point."""
    pairs = experiment.at_equal_compute(curve, "none").set_index(["seed", "step"])
    assert pairs.baseline.to_dict() == {(0, 4): 10, (0, 6): 15, (1, 4): 11, (1, 6): 16}
    assert (pairs.value - pairs.baseline).to_dict() == {(0, 4): 9, (0, 6): 8.5, (1, 4): 9, (1, 6): 9.5}


def test_at_equal_compute_nothing_is_extrapolated():
    curve = curve_of({"none": {0: NONE}, "dear": {0: ARM}}, {"none": 10.0, "dear": 20.0})
    pairs = experiment.at_equal_compute(curve, "none")
    assert pairs[["step", "baseline"]].to_numpy().tolist() == [[2, 20.0]]
    assert experiment.at_equal_compute(curve, "absent").empty


def step_6_at_equal_compute() -> pd.DataFrame:
    """Rows for `compare`: at each seed the baseline's own value, and the arm's above it by its difference at equal compute."""
    values = {"none": [24.0, 25.0], "running_cell_50": [24.0 + 8.5, 25.0 + 9.5]}
    return pd.DataFrame(
        [{"arm": arm, "seed": seed, "metric": "top-1", "value": v} for arm, own in values.items() for seed, v in enumerate(own)]
    )


def test_differences_are_compared_as_rows_are(curve):
    """`compare` makes the verdicts of this table, too."""
    pairs = experiment.at_equal_compute(curve, "none").query("step == 6").set_index("seed")
    found = compare_differences(pd.DataFrame({"running_cell_50": pairs.value - pairs.baseline}))
    assert (found.difference.item(), found.seeds.item()) == (9.0, 2)
    pd.testing.assert_frame_equal(found, compare(step_6_at_equal_compute(), "top-1", "none"), check_names=False)


def test_differences_hold_both_comparisons(smoke, tmp_path, curve):
    plan = planned(smoke)
    table = experiment.curve_differences(plan, curve, "none").set_index(["equal", "step"])
    assert table.difference.to_dict() == pytest.approx(
        {("steps", 2): -1, ("steps", 4): -1, ("steps", 6): 0.0, ("compute", 4): 9, ("compute", 6): 9}
    )
    alone = compare(step_6_at_equal_compute(), "top-1", "none")
    row = table.loc["compute", 6]
    assert (row.low, row.high, row.verdict) == (alone.low.item(), alone.high.item(), alone.verdict.item())
    [words] = experiment.equal_compute_words(Results(plan, curve, RunStore(tmp_path)), curve)
    assert row.verdict.split(" (")[0] in words
    assert experiment.curve_differences(plan, curve, "absent").empty


def test_a_seed_that_the_baseline_lacks_is_left_out(smoke, tmp_path, curve):
    fewer = curve[(curve.arm != "none") | (curve.seed == 0)]
    table = experiment.curve_differences(planned(smoke), fewer, "none")
    assert set(table.seeds) == {1}
    assert table.low.isna().all()
    drawn = experiment.difference_against_steps(Results(planned(smoke), fewer, RunStore(tmp_path)), fewer)
    assert "No comparison has an interval" in drawn.caption


def planned(smoke, arms=("scratch", "none", "running_cell_50"), **override):
    return plan_notebook("ablation_decoder_mask", build_recipe({**smoke, "arms": list(arms), "override": override}))


def test_a_plan_has_a_probe_per_kept_step(smoke):
    plan = planned(smoke)
    for cell in plan.cells:
        along = {name for name in cell.measures if "@step" in name}
        assert along == ({"probe@step2", "probe@step4"} if cell.arm != "scratch" else set())
    assert not [name for cell in planned(smoke, **{"pretrain.keep_at": []}).cells for name in cell.measures if "@" in name]


def test_rows_of_a_curve(smoke, tmp_path):
    plan = planned(smoke)
    rows = pd.DataFrame(
        [
            {"arm": cell.arm, "seed": cell.seed, "metric": metric, "value": value}
            for cell in plan.cells
            for metric, value in {"ridge@step2": 1.0, "ridge@step4": 2.0, "ridge": 3.0, "knn@step2": 9.0}.items()
        ]
    )
    results = Results(plan, rows, RunStore(tmp_path))
    curve = experiment.curve_rows(results)
    assert set(curve.arm) == {"none", "running_cell_50"}
    assert curve[["step", "value"]].drop_duplicates().to_numpy().tolist() == [[2, 1.0], [4, 2.0], [6, 3.0]]
    for arm in plan.pretrained:
        recipe, part = plan.first(arm).recipe, curve[(curve.arm == arm) & (curve.seed == 0)]
        each = step_macs(recipe.model, recipe.mask, 4)
        assert part.macs.tolist() == [2 * each, 4 * each, 6 * each]
    summary = experiment.curve_summary(curve)
    assert summary[summary.arm == "none"]["mean"].tolist() == [1.0, 2.0, 3.0]
    table = experiment.equal_compute_table(results, curve).frame
    assert table.iloc[:, 2].tolist() == ["steps", "compute"]
    assert list(table.columns[3:]) == ["after 2 steps", "after 4 steps", "after 6 steps", "verdict after 6 steps"]
    assert table["after 2 steps"].tolist() == ["+0.0 [no interval]", ""]
    cheaper = 1 - step_macs(recipe.model, recipe.mask, 4) / step_macs(recipe.model, plan.first("none").recipe.mask, 4)
    assert [cell.split()[0] for cell in table["after 6 steps"]] == ["+0.0", f"{3 * cheaper:+.1f}"]


def test_without_kept_weights_there_is_no_curve(smoke, tmp_path):
    plan = planned(smoke, **{"pretrain.keep_at": []})
    rows = pd.DataFrame([{"arm": cell.arm, "seed": cell.seed, "metric": "ridge", "value": 3.0} for cell in plan.cells])
    results = Results(plan, rows, RunStore(tmp_path))
    curve = experiment.curve_rows(results)
    assert curve.empty
    assert experiment.curve_differences(plan, curve, "none").empty
    assert experiment.equal_compute_words(results, curve) == []
    assert experiment.accuracy_against_compute(results, curve) is None
    assert experiment.difference_against_steps(results, curve) is None
    assert experiment.equal_compute_table(results, curve) is None


def test_settings_that_are_not_used_are_not_in_a_key(smoke):
    plain = build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.keep_at": []}})
    assert not {"keep_at", "target_from"} & pretrain_stage(plain, 0).settings["pretrain"].keys()
    keys = {
        pretrain_stage(plain.with_overrides(changes), 0).key
        for changes in ({}, {"pretrain.keep_at": [0.5]}, {"pretrain.target_from": "other_clip"})
    }
    assert len(keys) == 3


def test_a_wrong_part_names_the_setting(smoke):
    with pytest.raises(RecipeError, match=r"pretrain: keep_at \[0\.5, 0\.25\]"):
        build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.keep_at": [0.5, 0.25]}})


def test_kept_weights_count_in_the_disk_space(smoke):
    recipe = build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.keep_at": []}})
    alone = pretrain_stage(recipe, 0).disk_bytes
    assert pretrain_stage(recipe.with_overrides({"pretrain.keep_at": [0.3, 0.7]}), 0).disk_bytes == 3 * alone


@pytest.fixture(scope="module")
def pretrained(home, smoke, tmp_path_factory):
    recipe = build_recipe({**smoke, "arms": ["none"], "override": {"evaluate.probe.probes": ["linear_mean", "ridge", "knn"]}})
    store, stage = RunStore(tmp_path_factory.mktemp("runs")), pretrain_stage(recipe, 0)
    store.complete(stage, recipe.compute, progress=False)
    return recipe, store, stage


def test_a_probe_at_a_step_reads_the_weights_of_that_step(pretrained, tmp_path):
    """It gives the same result as the probe of a pre-training that ended with these weights."""
    recipe, store, stage = pretrained
    other = RunStore(tmp_path)
    shutil.copytree(store.folder(stage), other.folder(stage))
    shutil.copy(store.folder(stage) / kept_file(2), other.folder(stage) / WEIGHTS)
    expected = other.complete(probe_stage(recipe, stage, 0), recipe.compute, progress=False)["metrics"]
    found = store.complete(kept_probe_stage(recipe, stage, 0, 2), recipe.compute, progress=False)["metrics"]
    assert set(found) == {"linear_mean", "knn"}, "readouts of all tokens only if it is the main readout"
    assert found == {name: expected[name] for name in found}


def test_labels_are_shuffled_between_the_labelled_clips(pretrained, monkeypatch):
    """Only the main readout is run. Clips and classes are those of the probe, but assigned to each other at random."""
    recipe, store, stage = pretrained
    fitted = []

    def seen(name, features, labels, others, *grid):
        fitted.append((name, features, labels))
        return np.zeros(len(others), dtype=np.int64)

    monkeypatch.setattr(probe, "classical_answers", seen)
    for made in (probe_stage(recipe, stage, 7), shuffled_probe_stage(recipe, stage, 7)):
        result = store.complete(made, recipe.compute, progress=False)
    assert set(result["metrics"]) == {"linear_mean"}
    (_, features, labels), *_, (name, same_features, shuffled) = fitted
    assert name == "linear_mean"
    assert sorted(shuffled) == sorted(labels)
    assert shuffled.tolist() != labels.tolist()
    assert np.allclose(same_features.mean(1), features.mean(1), atol=1e-5)


def test_controls_are_of_the_first_pretrained_arm(smoke):
    plan = planned(smoke, arms=("scratch", "running_cell_50", "none"))
    assert [(cell.arm, cell.seed, list(cell.measures)) for cell in plan.control_cells] == [
        ("controls", seed, [f"probe@{name}"]) for seed in (0, 1) for name in ("other_clip", "shuffled_labels")
    ]
    other, shuffled = plan.control_cells[:2]
    assert shuffled.measures["probe@shuffled_labels"].inputs == (plan.cell("running_cell_50", 0).encoder,)
    own, control = (dict(stage.settings) for stage in (plan.cell("running_cell_50", 0).encoder, other.encoder))
    assert control["pretrain"].pop("target_from") == "other_clip"
    assert own["pretrain"].pop("keep_at") == [0.3, 0.7]
    assert control == own, "the same training but for its target"
    keys = {stage.key for stage in plan.stages}
    assert {stage.key for cell in plan.control_cells for stage in (cell.encoder, *cell.measures.values())} <= keys
    assert not planned(smoke, **{"evaluate.controls": []}).control_cells


def test_the_table_of_controls(smoke, tmp_path):
    """The gain over the untrained encoder is paired by seed: 11 - 10 and 12 - 13."""
    plan, store = planned(smoke), RunStore(tmp_path)
    for stage in (plan.controls, *(stage for cell in plan.control_cells for stage in cell.measures.values())):
        make_folder(store.folder(stage))
        write_json(store.folder(stage) / "result.json", {"test_clips": 32, "single_frames": [10.0] * 16})
    values = [
        ("controls", "ridge@other_clip", (11.0, 12.0)),
        ("controls", "ridge@shuffled_labels", (14.0, 16.0)),
        ("scratch", "ridge", (10.0, 13.0)),
        ("none", "ridge", (70.0, 80.0)),
        ("controls", "raw_pixels", (15.0,)),
        ("controls", "single_frame_mean", (12.0,)),
        ("controls", "single_frame_best", (20.0,)),
    ]
    rows = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "metric": metric, "value": value}
            for arm, metric, seeds in values
            for seed, value in enumerate(seeds)
        ]
    )
    table = experiment.controls_table(Results(plan, rows, store)).frame
    assert table["top-1 %"].tolist() == ["15.0", "12.0", "20.0", "11.5 ± 0.7", "15.0 ± 1.4"]
    assert set(table["chance %"]) == {"12.5"}
    gain = table["difference to the untrained encoder [95%]"].tolist()
    assert gain[3].startswith("+0.0 [-12.7")
    assert gain[:3] + gain[4:] == [""] * 4
    assert table["95% interval over seeds"].tolist()[3:] == ["5.1 to 17.9", "2.3 to 27.7"], "of Student's t"
    assert all(table["95% limit of guessing"][:3]), "the binomial limit is for what has one try"
    assert table["95% limit of guessing"].tolist()[3:] == ["", ""]
    without = planned(smoke, **{"evaluate.controls": []})
    assert len(experiment.controls_table(Results(without, rows, store)).frame) == 3


@pytest.mark.parametrize("name", ["other", "shuffled_label"])
def test_an_unknown_control_is_refused(smoke, name):
    with pytest.raises(RecipeError, match=r"evaluate\.controls"):
        planned(smoke, **{"evaluate.controls": [name]})


def test_looks_of_the_arms_are_those_of_all_figures(curve):
    figure = curves.accuracy_curves(experiment.curve_summary(curve), DECODER_MASKS, "top-1")
    for axes in figure.axes:
        assert [line.get_marker() for line in axes.get_lines()] == ["o", "D"]
    steps, compute = (np.array(axes.get_lines()[1].get_xdata()) for axes in figure.axes)
    assert steps.tolist() == [2, 4, 6]
    assert compute.tolist() == [10, 20, 30]

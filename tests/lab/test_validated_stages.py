"""Fine-tuning stages with validation: keys, splits, results, cost, and the figure of a report."""

import matplotlib.pyplot as plt
import pytest

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.experiments import downstream_action_classification as classification
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.plan import plan_ablation
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import finetune_stage, post_pretrain_stage
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.validation import ACCURACY, LOSS

ARMS = {name: classification.ARMS[name] for name in ("scratch", "scratch_long")}
EVERY = {"evaluate.finetune.validate_every": 2, "post_pretrain.validate_every": 2}
BEST = {**EVERY, "evaluate.finetune.keep": "best", "post_pretrain.keep": "best"}
CLIPS = 2 * 8 * 1  # sources x classes x validation clips of the smoke scale


@pytest.fixture(scope="module")
def recipe_of(smoke):
    def make(**override):
        return build_recipe({**smoke, "arms": list(ARMS), "override": override}, ARMS)

    return make


@pytest.mark.parametrize("make", [finetune_stage, post_pretrain_stage])
def test_keys_without_validation_do_not_change(recipe_of, make):
    plain, off, every, best = (
        make(recipe_of(**changes), None, 0)
        for changes in ({}, dict.fromkeys(EVERY, 0) | {"post_pretrain.keep": "last"}, EVERY, BEST)
    )
    assert plain.key == off.key
    assert not plain.settings[plain.kind].keys() & {"validate_every", "keep"}
    assert len({plain.key, every.key, best.key}) == 3


def test_the_validation_split_is_read_only_if_there_is_validation(recipe_of):
    assert "validation" not in finetune_stage(recipe_of(), None, 0).splits
    assert "validation" in finetune_stage(recipe_of(**EVERY), None, 0).splits


def test_a_missing_validation_list_is_reported_before_anything_runs(smoke, tmp_path):
    for split in ("train", "test"):
        lines = [f"{split}{number}.mp4,{number % 2}\n" for number in range(4)]
        (tmp_path / f"{split}.csv").write_text("path,label\n" + "".join(lines))
    lists = {"root": str(tmp_path), "train": "train.csv", "test": "test.csv", "classes": 2}
    recipe = build_recipe({
        **smoke, "data": {"lists": lists}, "seeds": [0], "arms": ["scratch"],
        "evaluate": {**smoke["evaluate"], "sources": [], "finetune_labels": None, "probe": {"labels": None}}, "override": EVERY,
    })  # fmt: skip
    with pytest.raises(RecipeError, match=r"data\.lists\.validation is not set"):
        plan_ablation("x", recipe, ARMS, lambda recipe, arm, encoder, seed: {"finetune": finetune_stage(recipe, None, seed)})


def test_the_cost_includes_validation(recipe_of):
    plain, every = (finetune_stage(recipe_of(**changes), None, 0) for changes in ({}, EVERY))
    held_out = 2 * 8 * 2
    per_clip = plain.work.prediction / held_out
    assert every.work.prediction == per_clip * (held_out + 2 * CLIPS), "after steps 2 and 4"
    assert every.work.reading_s == pytest.approx(plain.work.reading_s * (held_out + 2 * CLIPS) / held_out)
    assert every.work.training == plain.work.training


@pytest.fixture
def splits_read(monkeypatch):
    """The splits of the clips that were read, in order."""
    read, videos, video = [], MemmapDataset.videos, MemmapDataset.video

    def watched(clips, rows, *given):
        read.extend(clips.records[row].split for row in rows)
        return videos(clips, rows, *given)

    def watched_one(clips, index, *given):
        read.append(clips.records[index].split)
        return video(clips, index, *given)

    monkeypatch.setattr(MemmapDataset, "videos", watched)
    monkeypatch.setattr(MemmapDataset, "video", watched_one)
    return read


@pytest.mark.parametrize("make", [finetune_stage, post_pretrain_stage])
def test_test_clips_are_read_only_after_training(recipe_of, home, splits_read, tmp_path, make):
    stage, store = make(recipe_of(**BEST), None, 0), RunStore(tmp_path)
    result = store.complete(stage, recipe_of().compute, progress=False)
    tested = splits_read.index("test")
    assert splits_read[:tested].count("validation") >= 2 * CLIPS
    assert set(splits_read[:tested]) == {"train", "validation"}
    assert set(splits_read[tested:]) == {"test"}
    assert result["validation_clips"] == CLIPS
    assert set(result["best"]) == {"step", ACCURACY}


@pytest.mark.parametrize("changes", [EVERY, BEST])
def test_the_logged_accuracy_is_that_of_an_evaluation_on_the_validation_split(recipe_of, home, tmp_path, changes):
    """Of the last step, or of the step with the best accuracy."""
    stage = finetune_stage(recipe_of(**changes, **{"evaluate.split": "validation", "evaluate.finetune.lr": 0.01}), None, 0)
    result = RunStore(tmp_path).complete(stage, recipe_of().compute, progress=False)
    rows = [row for row in read_metrics(tmp_path / stage.key) if LOSS in row]
    assert [row["step"] for row in rows] == [2, 4]
    chosen = max(rows, key=lambda row: row[ACCURACY]) if changes is BEST else rows[-1]
    assert result["metrics"]["finetune"] == chosen[ACCURACY]
    assert result.get("best") == ({"step": chosen["step"], ACCURACY: chosen[ACCURACY]} if changes is BEST else None)


@pytest.fixture
def broken_clip(monkeypatch):
    """Make one clip of the validation split unreadable."""
    videos = MemmapDataset.videos

    def broken(clips, rows, *given):
        for row, video in zip(rows, videos(clips, rows, *given), strict=True):
            record = clips.records[row]
            bad = record.split == "validation" and record.action == "left" and record.source == "sticks"
            yield VideoError(record.path, "broken") if bad else video

    monkeypatch.setattr(MemmapDataset, "videos", broken)


@pytest.mark.slow
def test_unreadable_validation_clips_follow_the_recipe(recipe_of, home, broken_clip, tmp_path):
    store, compute = RunStore(tmp_path), recipe_of().compute
    with pytest.raises(MissingVideos, match=r"1 of 16 videos .*\n.*left.*broken"):
        store.complete(finetune_stage(recipe_of(**EVERY), None, 0), compute, progress=False)
    skipping = finetune_stage(recipe_of(**EVERY, **{"evaluate.missing": "skip"}), None, 0)
    result = store.complete(skipping, compute, progress=False)
    assert result["validation_clips"] == CLIPS - 1
    [left_out] = result["left_out_of_validation"]
    assert "left" in left_out


@pytest.mark.slow
def test_the_figure_of_a_report(recipe_of, home, tmp_path):
    def results(**override) -> Results:
        measures = lambda recipe, arm, encoder, seed: {"finetune": finetune_stage(recipe, None, seed)}  # noqa: E731
        plan, store = plan_ablation("x", recipe_of(**override, seeds=[0]), ARMS, measures), RunStore(tmp_path)
        store.complete_all(plan.stages, plan.recipe.compute)
        return Results(plan, plan.rows(store), store)

    assert classification.validation(results()) is None
    plot = classification.validation(results(**EVERY))
    assert plot.name == "validation"
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ["training loss", "validation loss", "validation top-1 (%)"]
    lines = {line.get_label(): line.get_xdata().tolist() for line in plot.figure.axes[1].lines}
    assert lines == {ARMS["scratch"].label: [2, 4], ARMS["scratch_long"].label: list(range(2, 25, 2))}
    plt.close(plot.figure)

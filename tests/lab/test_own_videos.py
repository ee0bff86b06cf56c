"""The notebook of own videos: neighbors and maps of constructed features, confusion, no labels, a folder from end to end."""

import json
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from vmae_lab.cli import main
from vmae_lab.data.check import FAILURES
from vmae_lab.data.video_lists import ListSettings, groups_of, read_all, read_split
from vmae_lab.evaluation.retrieval import feature_map, nearest, same_class, same_class_by_chance, standardised
from vmae_lab.lab import estimate
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.experiments import bring_your_own_videos as experiment
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots import charts, clip_pictures
from vmae_lab.lab.plots.text import short
from vmae_lab.lab.run_store import RunStore

NAME = "bring_your_own_videos"
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / f"{NAME}.ipynb"


def planned(parameters: dict, **override) -> Plan:
    arms = EXPERIMENTS[NAME].arms
    return plan_notebook(NAME, build_recipe({"arms": list(arms), **parameters, "override": override}, arms))


# Three directions, two clips each, of lengths that must not matter; the fourth direction is alone.
FEATURES = np.array([[1, 0, 0], [9, 1, 0], [0, 1, 0], [0, 5, 0.1], [0, 0, 1], [0, 0.3, 7], [-1, -1, -1]], dtype=float)
LABELS = np.array([0, 0, 1, 1, 2, 0, 2])


def test_neighbors_are_nearest_by_direction_and_not_the_clip_itself():
    near = nearest(FEATURES, 3)
    assert near.shape == (7, 3)
    assert near[:6, 0].tolist() == [1, 0, 3, 2, 5, 4]
    assert all(row not in found for row, found in enumerate(near))
    assert nearest(FEATURES, 100).shape == (7, 6), "there are no more others"
    assert same_class(LABELS[:6], nearest(FEATURES[:6], 1)) == pytest.approx(100 * 4 / 6)


def test_neighbors_are_from_other_groups():
    groups = np.array([0, 0, 1, 1, 2, 2, 2])
    near = nearest(FEATURES, 9, groups)
    assert near.shape == (7, 4), "as many as the clip of the largest group has"
    assert all(groups[row] not in groups[found] for row, found in enumerate(near))


def test_chance_is_the_expected_value_for_random_neighbors():
    """Computed by hand: 7 clips, 3 of class 0, 2 of class 1, 2 of class 2. With pairs as groups, the partner is excluded."""
    assert same_class_by_chance(LABELS) == pytest.approx(100 * (3 * 2 + 2 * 1 + 2 * 1) / (7 * 6))
    rng, labels = np.random.default_rng(0), np.arange(400) % 4
    drawn = [same_class(labels, nearest(rng.normal(size=(400, 8)), 1)) for _ in range(20)]
    assert np.mean(drawn) == pytest.approx(same_class_by_chance(labels), abs=1.5)
    assert same_class_by_chance(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])) == 0


def test_standardizing_removes_what_all_clips_share():
    shared = np.array([[100.0, 0, 5], [100, 1, 5], [100, 0, 5]])
    assert standardised(shared)[:, [0, 2]].tolist() == [[0, 0]] * 3
    assert np.isfinite(nearest(standardised(np.ones((5, 2))), 2)).all(), "clips that are all alike divide by nothing"


@pytest.mark.parametrize("rows", [2, 3, 4, 40])
def test_the_map_has_one_point_per_clip_and_is_reproducible(rows):
    features = standardised(np.random.default_rng(1).normal(size=(rows, 16)))
    points = feature_map(features, 3)
    assert points.shape == (rows, 2)
    assert np.array_equal(points, feature_map(features, 3))


def test_equal_clips_are_at_one_point():
    """t-SNE would divide by a standard deviation of zero, and fail on NaN."""
    assert not feature_map(standardised(np.ones((5, 16))), 0).any()


def test_the_map_keeps_groups_together():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(3), 20)
    points = feature_map(standardised(rng.normal(size=(60, 16)) + 8 * np.eye(16)[labels]), 0)
    inside = [np.linalg.norm(points[labels == c] - points[labels == c].mean(0), axis=1).max() for c in range(3)]
    centres = np.stack([points[labels == c].mean(0) for c in range(3)])
    assert min(np.linalg.norm(centres[a] - centres[b]) for a in range(3) for b in range(a)) > max(inside)


@pytest.mark.parametrize("kinds", [3, 8, 20, 60])
def test_the_most_frequent_kinds_have_their_own_color_and_marker(kinds):
    names = [f"class {i % kinds:02d}" for i in range(2 * kinds)]
    axes = charts.clip_map(np.random.default_rng(0).normal(size=(2 * kinds, 2)), names, "class").axes[0]
    drawn = [(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in axes.collections]
    assert len(set(drawn)) == len(drawn) == min(kinds, charts.LISTED)
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 2 * kinds, "none is left out"
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert ("37 others (74)" in told) == (kinds == 60)


def test_a_matrix_of_many_classes_shows_the_most_frequent():
    counts = np.diag(np.arange(40))
    axes = charts.confusion_matrix(counts, [f"class {i}" for i in range(40)]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"class {i}" for i in range(15, 40)]
    few = charts.confusion_matrix(np.array([[3, 1], [0, 4]]), ["a", "b"]).axes[0]
    assert [text.get_text() for text in few.texts] == ["75\n(3)", "25\n(1)", "", "100\n(4)"]


def test_the_axes_of_a_matrix_are_about_predictions():
    figure = charts.confusion_matrix(np.array([[3, 1], [0, 4]]), ["a", "b"])
    axes, bar = figure.axes
    named = [axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()]
    assert named == ["prediction", "class (number of predictions)", "% of the class's predictions"]


def test_a_readout_without_mistakes_has_no_table_of_confusions(smoke):
    plan = planned(smoke)
    counts = 5 * np.eye(8, dtype=np.int64)
    assert experiment.confused_table(plan, counts) is None
    counts[1, 2] = 3
    assert experiment.confused_table(plan, counts).frame.predictions.tolist() == [3]


def test_names_are_shortened_in_the_middle():
    assert short("clip", 9) == "clip"
    assert short("a_very_long_name.mp4", 9) == "a_ve….mp4"
    assert all(len(short("x" * 50, most)) == most for most in (5, 12, 13))


@pytest.fixture(scope="module")
def finished(smoke, tmp_path_factory) -> Results:
    plan, store = planned(smoke), RunStore(tmp_path_factory.mktemp("runs"))
    store.complete_all(plan.stages, plan.recipe.compute)
    return Results(plan, plan.rows(store), store)


@pytest.mark.slow
def test_the_confusion_matrix_has_the_scored_predictions(finished):
    """Its rows add up to the held-out clips of each class, its diagonal to the accuracies of the table."""
    plan, rows = finished.plan, finished.rows
    for arm in plan.arms:
        counts = experiment.confusion(finished, arm)
        each = len(plan.recipe.evaluate.sources) * plan.recipe.data.motionworld.test * len(plan.recipe.seeds)
        assert counts.sum(1).tolist() == [each] * 8
        scored = rows[(rows.arm == arm) & (rows.metric == "ridge")].value.mean()
        assert 100 * np.trace(counts) / counts.sum() == pytest.approx(scored)
        table = experiment.confused_table(plan, counts).frame
        assert (table["class"] != table.predicted).all()
        assert table.predictions.iloc[0] == (counts - np.diag(np.diag(counts))).max()


@pytest.mark.slow
def test_every_arm_and_seed_has_features_of_the_requested_number_of_clips(finished):
    plan = finished.plan
    encoded = experiment.encode_clips(finished)
    assert set(encoded.features) == {(arm, seed) for arm in plan.arms for seed in plan.recipe.seeds}
    assert len(encoded) == len(encoded.frames) == encoded.total == 32
    assert all(features.shape == (32, plan.recipe.model.dimensions.width) for features in encoded.features.values())
    more = experiment.with_neighbours(finished, encoded)
    assert len(more.rows) == len(finished.rows) + 4
    assert len(experiment.with_neighbours(more, encoded).rows) == len(more.rows), "a cell that runs twice adds nothing"
    chosen = experiment.queries(finished, encoded)
    assert len({encoded.names[row] for row in chosen}) == len(chosen) == clip_pictures.QUERIES, "each of another class"
    few = experiment.encode_clips(finished, most=9)
    assert (len(few), few.total) == (9, 32)
    assert "9 of 32 clips of the test split" in experiment.map_plot(finished, few).caption


def of_lists(smoke: dict, lists: dict, **evaluate) -> dict:
    """The smoke recipe on listed videos, all labels, four steps, one seed."""
    probe = {"probes": ["ridge", "knn"], "labels": None}
    return {
        **smoke,
        "scale": "tiny-own",
        "data": {"lists": lists, "stride": 2, "crop_scales": [1.0]},
        "pretrain": {**smoke["pretrain"], "steps": 4},
        "evaluate": {**smoke["evaluate"], "sources": [], "probe": probe, "finetune_labels": None, **evaluate},
        "seeds": [0],
    }


def test_without_labels_the_plan_has_only_pretraining(smoke, tmp_path):
    plan = planned(of_lists(smoke, {"root": str(tmp_path), "pretrain": "."}), seeds=[0, 1])
    assert [stage.kind for stage in plan.stages] == ["pretrain", "pretrain"]
    assert plan.possible == ["untrained", "pretrained"]
    assert estimate.plan_cost(plan, RunStore(tmp_path), estimate.this_machine(1e9)).stages == {"pretrain": 2}


def test_every_list_is_checked_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/one.mp4", "a/two.mp4", "b/three.mp4"):
        (tmp_path / name).write_text("")
    hold_out = {"test": 0.4, "validation": 0.0}
    same = read_all(ListSettings(root=str(tmp_path), pretrain=".", train=".", hold_out=hold_out))
    assert {name: len(videos) for name, (videos, _) in same.items()} == {"train": 3}, "held-out ones too"
    sources = {"first": {"list": "a"}, "second": {"list": "b/*.mp4"}}
    assert set(read_all(ListSettings(root=str(tmp_path), pretrain=sources))) == {"pretrain.first", "pretrain.second"}


def test_groups_are_those_of_the_split(tmp_path):
    for person in range(12):
        (tmp_path / "wave").mkdir(exist_ok=True)
        (tmp_path / "jump").mkdir(exist_ok=True)
        for folder in ("wave", "jump"):
            (tmp_path / folder / f"person{person:02d}.mp4").write_text("")
    hold_out = {"validation": 0.2, "test": 0.4, "group": r"person(\d+)"}
    settings = ListSettings(root=str(tmp_path), train=".", hold_out=hold_out)
    groups, videos = groups_of(settings, "test"), read_split(settings, "test")
    assert [path[-6:-4] for path in videos.table.path] == groups.tolist()
    assert groups_of(ListSettings(root=str(tmp_path), train="."), "train") is None


def write_video(path: Path, place: int, step: int) -> None:
    """Write a video of 40 frames of 64 x 48 pixels with a moving bar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(40):
            picture = np.full((48, 64, 3), 40, dtype=np.uint8)
            picture[:, np.arange(place + step * t, place + step * t + 12) % 64] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


HOLD_OUT = {"validation": 0.0, "test": 0.45}
BROKEN = "right/broken.mp4"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two classes of eight videos. One held-out video is a web page, as after a failed download."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(8):
        write_video(root / "left" / f"{number}.mp4", 7 * number, -1)
        write_video(root / "right" / f"{number}.mp4", 7 * number + 3, 1)
    (root / BROKEN).write_text("<html>not found</html>")
    assert BROKEN in set(read_split(ListSettings(root=str(root), train=".", hold_out=HOLD_OUT), "test").table.path)
    return root


@pytest.fixture
def run_own(smoke, videos, project, warm):
    """Run the notebook as a user does; returns the status and the report's folder."""

    def run(lists: dict, **evaluate) -> tuple[int, Path]:
        file = project / "tiny.yaml"
        file.write_text(yaml.safe_dump(of_lists(smoke, {"root": str(videos), **lists}, **evaluate)))
        return main(["run", str(NOTEBOOK), "--scale", str(file)]), project / "reports" / "tiny-own" / NAME

    return run


@pytest.mark.slow
def test_a_folder_of_own_videos_from_end_to_end(run_own, project, capfd):
    """A broken file is reported by the check, and stops the evaluation unless the recipe skips broken files."""
    labelled = {"train": ".", "hold_out": HOLD_OUT}
    status, folder = run_own(labelled)
    said = capfd.readouterr()
    assert status == 1
    assert "MissingVideos: 1 of" in said.err
    assert BROKEN in said.err
    assert not (folder / "README.md").exists()
    status, folder = run_own(labelled, missing="skip")
    said = capfd.readouterr()
    assert status == 0, said.err[-3000:]
    page = (folder / "README.md").read_text()
    assert "Damaged and unreadable videos, up to " in page
    assert "Unreadable and left out of all averages: 1 video" in page
    state = pd.read_csv(folder / "tables" / "check.csv")
    assert state[["videos", "ok", "damaged", "failed"]].to_numpy().tolist() == [[17, 16, 0, 1]]
    assert pd.read_csv(folder / "tables" / "broken.csv").path.tolist() == [BROKEN]
    (failures,) = (project / "runs" / "checks").glob(f"*/train/{FAILURES}")
    assert BROKEN in failures.read_text()
    assert "17 videos, 17 already checked" in said.out, "the second check decodes nothing"
    rows = pd.read_csv(folder / "tables" / "results.csv")
    scored = {"ridge", "knn", experiment.SAME_CLASS}
    assert {(row.arm, row.metric) for row in rows.itertuples() if row.metric in scored} == {
        (arm, metric) for arm in ("untrained", "pretrained") for metric in scored
    }
    for figure in ("neighbours", "map", "confusion", "reconstruction", "loss", "clips"):
        with Image.open(folder / "figures" / f"{figure}.png") as picture:
            assert min(picture.size) > 100


@pytest.mark.slow
def test_a_folder_without_labels_gives_figures_and_no_scores(run_own, capfd):
    status, folder = run_own({"pretrain": "."})
    assert status == 0, capfd.readouterr().err[-3000:]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [stage["kind"] for stage in manifest["stages"].values()] == ["pretrain"]
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"neighbours", "map", "reconstruction", "loss", "clips"}
    assert {path.stem for path in (folder / "tables").glob("*.csv")} == {"check", "broken", "results"}
    page = (folder / "README.md").read_text()
    assert "Without labels there are no scores" in page
    assert "16 of 17 clips of the videos to pre-train on (unreadable and left out: 1)" in page
    assert "untrained" not in page


@pytest.mark.slow
def test_too_few_readable_videos_are_reported_before_anything_is_trained(smoke, videos, tmp_path):
    """How many can be read is not known before they are decoded."""
    (tmp_path / "test.csv").write_text(f"path,label\nleft/0.mp4,left\n{BROKEN},right\n")
    plan = planned(of_lists(smoke, {"root": str(videos), "train": ".", "test": str(tmp_path / "test.csv")}))
    with pytest.raises(RecipeError, match="the test split has 1 video that can be read; at least 2"):
        experiment.shown_clips(plan, 6)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"wave": 4, "jump": 4, "run": 4}, {"1": 2, "02": 2}], ids=["3x4", "2x2"])
def test_the_documented_command_works_on_few_videos(sizes, tmp_path, project, capfd, warm):
    root = tmp_path / "my videos"
    for label, (name, number) in enumerate(sizes.items()):
        for i in range(number):
            write_video(root / name / f"{i}.mp4", 11 * i + 5 * label, label + 1)
    words = ["-p", "data.lists.root", str(root), "-p", "pretrain.steps", "4", "-p", "evaluate.probe.attentive_steps", "2"]
    scale = str(NOTEBOOK.parents[1] / "params" / "own.yaml")
    status = main(["run", str(NOTEBOOK), "--scale", scale, *words, "-p", "seeds", "[0]"])
    assert status == 0, capfd.readouterr().err[-3000:]
    [folder] = project.glob(f"reports/own-variant-*/{NAME}")
    rows = pd.read_csv(folder / "tables" / "results.csv")
    assert set(rows.metric) >= {"ridge", "attentive", "linear_mean", "knn", experiment.SAME_CLASS}
    results = [json.loads(path.read_text()) for path in (project / "runs").glob("probe-*/result.json")]
    assert {result["test_clips"] for result in results} == {len(sizes)}, "one of each class"


def test_the_embedded_set_needs_no_check(smoke, tmp_path):
    plan = planned(smoke)
    checked = experiment.check_videos(plan, tmp_path)
    assert experiment.check_table(plan, checked, tmp_path).frame.shape == (1, 2)
    assert experiment.broken_table(checked) is None
    assert not list(tmp_path.iterdir())

"""The recipes of params/paper are valid, can be planned, and have the values of the sources that they name."""

import csv
from pathlib import Path

import pytest
import yaml

from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.scales import read_scale

PAPER = Path(__file__).parents[2] / "params" / "paper"
BOOK = "ablation_decoder_mask"
CLASSES = {"ssv2": 174, "k400": 400, "k600": 600, "k710": 710, "ucf101": 101, "hmdb51": 51}


HYBRIDS = ("base", "large", "huge", "giant")
VIDEOS = {
    "k400": 240_000,
    "k600": 366_000,
    "k710": 658_000,
    "ssv2": 168_913,
    "ucf101": 9_537,
    "hmdb51": 3_570,
    "hybrid": 1_348_000,
}
SCRIPTS = PAPER.parents[2] / "shared" / "official_recipes.csv"
# What a script leaves to its program.
DEFAULTS = {
    "num_sample": 2, "min_lr": 1e-6, "warmup_epochs": 5, "clip_grad": None, "drop_path": 0.1, "head_drop_rate": 0.0,
    "layer_decay": 0.75, "weight_decay": 0.05,
}  # fmt: skip
OF_PRETRAINING = {"num_sample": 4, "min_lr": 1e-5, "clip_grad": None}


def sizes_of(name: str) -> list[str]:
    """Return the recipes of a data set: `k400` for the base model, `k400_large` for another size."""
    return sorted(path.stem for path in PAPER.glob(f"{name}*.yaml"))


def recipe_of(stem: str, root: Path | None = None, book: str = BOOK) -> Recipe:
    parameters = read_scale(str(PAPER / f"{stem}.yaml"), [])
    if root:
        parameters["data"]["lists"]["root"] = str(root)
    arms = list(EXPERIMENTS[book].arms)
    return build_recipe({"arms": arms, **parameters}, arms)


def test_there_is_a_recipe_for_every_data_set():
    hybrids = {f"hybrid_{size}" for size in HYBRIDS}
    bases = {path.stem for path in PAPER.glob("*.yaml") if "base" not in yaml.safe_load(path.read_text())}
    assert bases == {*CLASSES, *hybrids, "ava", "thumos14", "fineaction"}
    sizes = ["k400", *(f"k400_{size}" for size in ("giant", "giant_after_k710", "huge", "large", "small"))]
    assert sizes_of("k400") == sizes


@pytest.mark.parametrize("name", list(CLASSES))
def test_every_size_of_a_recipe_is_valid_and_can_be_planned(name, tmp_path):
    for split in ("pretrain", "train", "val"):
        row = "a.mp4 0 -1\n" if split == "pretrain" else "a.mp4 0\n"
        (tmp_path / f"{split}.csv").write_text(row)
    for stem in sizes_of(name):
        recipe, size = recipe_of(stem, tmp_path), [*stem.split("_"), "base"][1]
        assert (recipe.scale, recipe.model.size, recipe.data.classes) == (stem, size, CLASSES[name])
        assert plan_notebook(BOOK, recipe).stages


@pytest.mark.parametrize("name", list(CLASSES))
def test_every_recipe_has_the_parts_that_all_data_sets_share(name):
    """VideoMAE V2's recipe. Only Something-Something has no flips, and sparse clips."""
    for stem in sizes_of(name):
        tuned = recipe_of(stem).evaluate.finetune
        assert (tuned.mix.mixup, tuned.mix.cutmix, tuned.label_smoothing, tuned.repeats) == (0.8, 1.0, 0.1, 2)
        assert (tuned.betas, tuned.head_init_scale, tuned.readout) == ((0.9, 0.999), 0.001, "mean")
        assert (tuned.augment.rand_augment, tuned.augment.erase) == ("rand-m7-n4-mstd0.5-inc1", 0.25)
        assert (tuned.sampling, tuned.augment.flip) == (("sparse", 0.0) if name == "ssv2" else ("dense", 0.5))
        assert 0.1 <= tuned.drop_path <= 0.35
        assert tuned.ema is None
        assert 0.65 <= tuned.layer_decay <= 0.9


@pytest.mark.parametrize(
    ("stem", "decoded", "videos", "epochs", "peak"),
    [
        ("ssv2", 256, 168_913, 25, 2e-3),  # lr 2e-3 per 256 decoded clips
        ("ssv2_small", 384, 168_913, 40, 1.5e-3),  # 1e-3
        ("k400", 512, 240_000, 90, 1.4e-3),  # 7e-4
        ("k400_large", 192, 240_000, 35, 1.5e-3),  # 2e-3
        ("k400_giant_after_k710", 96, 240_000, 3, 3.75e-6),  # 1e-5
        ("k710_giant", 96, 658_000, 35, 3.75e-4),  # 1e-3
        ("ucf101", 128, 9_537, 100, 2.5e-4),  # 5e-4
    ],
)
def test_repeats_change_neither_the_rate_nor_the_epochs(stem, decoded, videos, epochs, peak):
    """Scripts count decoded clips, and scale the rate by them. Here, batch_size counts samples, two per decoded clip."""
    tuned = recipe_of(stem).evaluate.finetune
    assert tuned.batch_size == 2 * decoded
    assert tuned.peak_lr == pytest.approx(peak)
    assert tuned.steps * decoded == pytest.approx(epochs * videos, rel=0.015)


# script -> file
FINETUNING = {
    "vit_b_k400_ft": "k400",
    "vit_l_k400_ft": "k400_large",
    "vit_h_k400_ft": "k400_huge",
    "vit_g_k400_ft": "k400_giant",
    "vit_g_k710_it_k400_ft": "k400_giant_after_k710",
    "vit_h_k600_ft": "k600_huge",
    "vit_g_k710_it_k600_ft": "k600_giant_after_k710",
    "vit_b_k710_ft": "k710",
    "vit_h_k710_ft": "k710_huge",
    "vit_g_k710_ft": "k710_giant",
    "vit_b_ssv2_ft": "ssv2",
    "vit_l_ssv2_ft": "ssv2_large",
    "vit_h_ssv2_ft": "ssv2_huge",
    "vit_g_ssv2_ft": "ssv2_giant",
    "vit_g_k710_it_ucf101_ft": "ucf101_giant_after_k710",
    "vit_g_k710_it_hmdb51_ft": "hmdb51_giant_after_k710",
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, dict[str, float | None]]:
    """The values of the official scripts, by name of the script. None is the default of the program."""
    if not SCRIPTS.exists():
        pytest.skip(f"{SCRIPTS} is not part of a clone: the official scripts' values are not at hand")
    with SCRIPTS.open() as file:
        rows = list(csv.DictReader(file))
    values = {row.pop("script"): {name: float(text) if text else None for name, text in row.items()} for row in rows}
    return {name.split("/")[-1]: row for name, row in values.items()}


def filled(row: dict[str, float | None], defaults: dict[str, float | None]) -> dict[str, float | None]:
    return {name: defaults.get(name) if value is None else value for name, value in row.items()}


def check_rates(settings, row, videos):
    """Check that batch, steps and rates are those of the script.

    The script counts decoded clips: epochs of whole batches, warm-up from 0, and both rates scaled by the batch size.
    """
    decoded = row["gpus"] * row["batch_size"]
    assert decoded == row["decoded_clips_a_step"]
    assert (settings.repeats, settings.batch_size) == (row["num_sample"], row["num_sample"] * decoded)
    assert (settings.lr, settings.lr_reference_batch) == (row["lr"], 256 * row["num_sample"])
    assert settings.peak_lr == pytest.approx(row["peak_lr"], rel=0.005)  # rounded there
    assert settings.lr_at(settings.warmup_steps) == pytest.approx(settings.peak_lr)
    assert settings.lr_at(settings.steps) == pytest.approx(row["min_lr"] * decoded / 256)
    epoch = videos // decoded
    assert (settings.steps, settings.warmup_steps) == (row["epochs"] * epoch, row["warmup_epochs"] * epoch)
    assert settings.clip_grad == row["clip_grad"]
    assert settings.ema is None


def test_every_script_has_a_recipe(scripts):
    assert set(scripts) == {*FINETUNING, *(f"vit_{size[0]}_hybrid_pt" for size in HYBRIDS)}


@pytest.mark.parametrize("script", FINETUNING)
def test_fine_tuning_is_as_in_the_official_script(scripts, script):
    stem = FINETUNING[script]
    recipe, row = recipe_of(stem), filled(scripts[script], DEFAULTS)
    tuned = recipe.evaluate.finetune
    check_rates(tuned, row, VIDEOS[stem.split("_")[0]])
    assert (tuned.drop_path, tuned.dropout) == (row["drop_path"], row["head_drop_rate"])
    assert (tuned.layer_decay, tuned.weight_decay) == (row["layer_decay"], row["weight_decay"])
    assert tuned.head_init_scale == 0.001
    if tuned.sampling == "dense":
        assert recipe.data.stride == row["sampling_rate"]
    assert script in (PAPER / f"{stem}.yaml").read_text(), "the file names its source"


@pytest.mark.parametrize("size", HYBRIDS)
def test_pre_training_on_the_hybrid_is_as_in_the_official_script(scripts, tmp_path, size):
    script = f"vit_{size[0]}_hybrid_pt"
    file = PAPER / f"hybrid_{size}.yaml"
    parameters = read_scale(str(file), [])
    for source in ("k710", "ssv2", "ava", "webvid"):
        (tmp_path / source).mkdir()
        (tmp_path / source / "pretrain.csv").write_text("a.mp4 0 -1\n")
        parameters["data"]["lists"]["pretrain"][source]["root"] = str(tmp_path / source)
    for split in ("train", "val"):
        (tmp_path / "k710" / f"{split}.csv").write_text("a.mp4 0\n")
    parameters["data"]["lists"]["root"] = str(tmp_path / "k710")
    recipe = build_recipe({"arms": list(EXPERIMENTS[BOOK].arms), **parameters}, EXPERIMENTS[BOOK].arms)
    check_rates(recipe.pretrain, filled(scripts[script], OF_PRETRAINING), VIDEOS["hybrid"])
    assert (recipe.scale, recipe.model.size, recipe.data.classes) == (f"hybrid_{size}", size, 710)
    assert {source: recipe.data.stride_of(source) for source in recipe.data.sources} == {
        "k710": 4,
        "ssv2": 2,
        "ava": 4,
        "webvid": 4,
    }
    assert (recipe.mask.encoder_ratio, recipe.mask.decoder, recipe.mask.decoder_ratio) == (0.9, "running_cell", 0.5)
    assert plan_notebook(BOOK, recipe).stages
    assert script in file.read_text()
    if size != "large":  # which no script trains on Kinetics-710
        assert recipe.evaluate.finetune == recipe_of("k710" if size == "base" else f"k710_{size}").evaluate.finetune


@pytest.mark.parametrize("name", ["thumos14", "fineaction"])
def test_temporal_detection_pre_trains_the_giant_on_kinetics_710(scripts, name):
    settings = recipe_of(name).pretrain
    check_rates(settings, filled(scripts["vit_g_hybrid_pt"], OF_PRETRAINING), VIDEOS["k710"])
    assert settings.peak_lr == pytest.approx(4.8e-3)
    steps = {"steps": settings.steps, "warmup_steps": settings.warmup_steps}
    assert settings == recipe_of("hybrid_giant").pretrain.model_copy(update=steps)


@pytest.mark.parametrize(
    ("name", "lr", "decoded", "epochs", "lowest"),
    [("k400", 1.5e-4, 2048, 1600, 8e-5), ("ava", 1.5e-4, 2048, 1600, 8e-5), ("ucf101", 3e-4, 192, 3200, 7.5e-6)],
)
def test_pre_training_of_videomae_v1_has_no_decoder_mask_and_a_scaled_lowest_rate(name, lr, decoded, epochs, lowest):
    recipe = recipe_of(name)
    settings = recipe.pretrain
    assert (recipe.mask.decoder, recipe.mask.decoder_ratio) == ("none", 0)
    assert (settings.lr, settings.lr_reference_batch, settings.batch_size, settings.repeats) == (lr, 256, decoded, 1)
    assert settings.lr_at(settings.steps) == pytest.approx(lowest)
    assert settings.warmup_steps * epochs == 40 * settings.steps


@pytest.mark.parametrize(
    ("stem", "size", "lr", "decay", "epochs"),
    [
        ("ava", "base", 2.5e-4, 0.75, 30),
        ("ava_base_supervised", "base", 5e-4, 0.75, 30),
        ("ava_small", "small", 1e-3, 0.6, 30),
        ("ava_small_supervised", "small", 5e-4, 0.6, 30),
        ("ava_large", "large", 2.5e-4, 0.75, 30),
        ("ava_large_supervised", "large", 5e-4, 0.8, 20),
        ("ava_huge", "huge", 5e-4, 0.8, 20),
    ],
)
def test_the_recipes_of_ava_have_the_settings_of_every_size(stem, size, lr, decay, epochs):
    """VideoMAE's values, with rates per 256 clips and 128 clips per step, for self-supervised and for supervised encoders."""
    recipe = recipe_of(stem, book="downstream_spatial_detection").with_overrides({"arms": ["pretrained"]})
    settings = recipe.detect
    assert (recipe.scale, recipe.model.size) == (stem, size)
    assert (settings.layer_decay, settings.batch_size) == (decay, 128)
    assert settings.peak_lr == pytest.approx(lr / 2)
    assert settings.steps * 128 == epochs * 184_000
    assert settings.warmup_steps == pytest.approx(5 * 184_000 / 128, abs=1)
    assert (settings.betas, settings.weight_decay, settings.drop_path, settings.head_init_scale) == (
        (0.9, 0.999),
        0.05,
        0.2,
        0.001,
    )
    assert (settings.stride, settings.side, settings.test_short_side, settings.augment.short_side) == (4, 224, 256, (256, 256))
    assert (settings.person_score, settings.enlarge, settings.most_boxes) == (0.8, (0.1, 0.05), 100)
    assert [stage.kind for stage in plan_notebook("downstream_spatial_detection", recipe).stages] == ["pretrain", "detect"]


def test_a_published_checkpoint_is_trained_on_own_videos_with_the_rates_of_the_papers():
    """params/own.yaml has other rates, which are for a tiny model with new weights."""
    own = build_recipe({"arms": ["finetuned"], **read_scale("own_checkpoint", [PAPER.parent])})
    pairs = (
        (own.pretrain, recipe_of("hybrid_base").pretrain),
        (own.evaluate.finetune, recipe_of("k400").evaluate.finetune),
    )
    for settings, published in pairs:
        decoded, published_decoded = (each.batch_size / each.repeats for each in (settings, published))
        assert settings.peak_lr / decoded == pytest.approx(published.peak_lr / published_decoded)
        assert settings.lowest_lr / decoded == pytest.approx(published.lowest_lr / published_decoded)


def test_the_two_recipes_of_something_something_pre_train_for_the_same_steps():
    epoch = VIDEOS["ssv2"] // 1024
    scale = build_recipe({"arms": ["none"], **read_scale("paper", [PAPER.parent])})
    for settings in (scale.pretrain, recipe_of("ssv2").pretrain):
        assert (settings.steps, settings.warmup_steps) == (800 * epoch, 40 * epoch)


def test_every_file_of_ava_is_tested():
    assert len(sizes_of("ava")) == 7


@pytest.mark.parametrize(
    ("name", "other", "size"),
    [("thumos14", "k710_giant", "giant"), ("fineaction", "k710_giant", "giant"), ("ava", "k400", "base")],
)
def test_supervised_training_before_detection_is_the_data_set_s_own_recipe(name, other, size):
    detection = recipe_of(name)
    assert detection.model.size == size
    assert detection.post_pretrain == detection.evaluate.finetune == recipe_of(other).evaluate.finetune


@pytest.mark.parametrize(
    ("name", "stride", "thresholds", "videos"),
    [("thumos14", 4, [0.3, 0.4, 0.5, 0.6, 0.7], 200), ("fineaction", 16, [0.5 + 0.05 * i for i in range(10)], 8440)],
)
def test_the_recipes_of_temporal_detection_have_the_paper_s_settings(name, stride, thresholds, videos):
    """Windows of 16 frames, squashed and by default normalized. Head, training and predictions are ActionFormer's."""
    book = EXPERIMENTS["downstream_temporal_detection"]
    recipe = build_recipe({"arms": ["supervised"], **yaml.safe_load((PAPER / f"{name}.yaml").read_text())}, book.arms)
    settings, shape, answers = recipe.localise, recipe.localise.shape, recipe.localise.suppress
    assert (recipe.model.size, recipe.model.clip.frames, recipe.model.clip.side) == ("giant", 16, 224)
    made = settings.features
    assert (made.stride, made.frame, made.scale_only) == (stride, "squash", False)
    assert (shape.window, shape.levels, settings.radius, settings.longest) == (19, 6, 1.5, 2304)
    assert (settings.lr, settings.weight_decay, settings.clip_grad) == (1e-4, 0.05, 1.0)
    assert settings.ema is not None
    assert (answers.candidates, answers.sigma, answers.kept, answers.least_score) == (2000, 0.5, 200, 0.001)
    assert settings.thresholds == pytest.approx(thresholds)
    epoch = videos / settings.batch_size
    assert settings.steps / epoch == pytest.approx(35, rel=0.001)
    assert settings.warmup_steps / epoch == pytest.approx(5, rel=0.001)
    plan = plan_notebook("downstream_temporal_detection", recipe)
    assert [stage.kind for stage in plan.stages] == ["pretrain", "post_pretrain", "features", "features", "localise"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: missing.yaml\n", "missing.yaml"),
        ("base: k400.yaml\nmodel: {size: large}\n", "model"),
        ("base: other.yaml\n", "other.yaml"),  # which has a base itself
    ],
)
def test_a_base_that_cannot_be_used_is_named(tmp_path, text, named):
    (tmp_path / "k400.yaml").write_text((PAPER / "k400.yaml").read_text())
    (tmp_path / "other.yaml").write_text("base: k400.yaml\n")
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_scale(str(file), [])
    assert str(file) in str(caught.value)
    assert named in str(caught.value)

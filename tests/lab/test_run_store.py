"""The run store: stages are shared, reused and resumed, and unfinished ones are never used."""

import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from vmae_lab.data.activitynet import UntrimmedSettings
from vmae_lab.data.ava import SceneSettings
from vmae_lab.data.dataset import DataSettings
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.plan import plan_ablation
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import (
    WEIGHTS,
    Job,
    Stage,
    controls_stage,
    detect_stage,
    distill_stage,
    finetune_stage,
    localise_stage,
    measure_stage,
    post_pretrain_stage,
    pretrain_stage,
    probe_stage,
    views_stage,
)
from vmae_lab.lab.stages.pretrain import PretrainStage
from vmae_lab.models.checkpoints import CheckpointError
from vmae_lab.training.checkpoint import Checkpoints
from vmae_lab.training.metrics import latest_step
from vmae_lab.training.preemption import STOPPED
from vmae_lab.training.settings import Compute
from vmae_lab.utils.atomic_io import StorageError, atomic_write, make_folder, write_json
from vmae_lab.utils.progress import VARIABLE

BOOK = "ablation_decoder_mask"


@pytest.fixture
def recipe(smoke):
    return build_recipe({**smoke, "arms": ["scratch", "running_cell_50"]}, DECODER_MASKS)


def test_a_key_holds_what_decides_the_result_and_nothing_else(recipe):
    key = pretrain_stage(recipe, 0).key
    same = recipe.with_overrides({"compute.workers": 2, "compute.log_every": 1, "seeds": [5], "scale": "other"})
    assert pretrain_stage(same, 0).key == key
    for change in ({"pretrain.lr": 1.0}, {"mask.decoder_ratio": 0.25}, {"data.motionworld.seed": 1}, {"model.tubelet": 4}):
        assert pretrain_stage(recipe.with_overrides(change), 0).key != key
    assert pretrain_stage(recipe, 1).key != key
    probes = [probe_stage(recipe, pretrain_stage(recipe, seed), 0).key for seed in (0, 1)]
    assert probes[0] != probes[1], "an input's key is part of the key"


def distill_from(recipe, teacher, seed):
    return distill_stage(recipe, teacher, None, seed)


HELD_OUT = [{"evaluate.split": "validation"}, {"data.motionworld.seed": 1}, {"model.frames": 4}]
SOURCES = {"evaluate.sources": ["digits"]}
# Of every kind of stage: how it is made of a recipe, an input and a seed, and what changes its result.
READ_BY = {
    "probe": (probe_stage, [*HELD_OUT, SOURCES, {"evaluate.probe.labels": 8}, {"evaluate.probe.attentive_lr": 0.1}]),
    "finetune": (finetune_stage, [*HELD_OUT, SOURCES, {"evaluate.finetune_labels": 8}, {"evaluate.finetune.lr": 0.1}]),
    "views": (views_stage, [*HELD_OUT, SOURCES, {"evaluate.views.crops": 2}, {"evaluate.views.sampling": "sparse"}]),
    "post_pretrain": (post_pretrain_stage, [*HELD_OUT, {"post_pretrain.lr": 0.1}, {"data.pretrain_sources": ["digits"]}]),
    "distill": (distill_from, [*HELD_OUT, {"distill.temperature": 2.0}]),
}


@pytest.mark.parametrize("kind", READ_BY)
def test_every_kind_of_stage_is_named_by_all_that_changes_its_result(recipe, kind):
    """If a setting were not in the key, the result of another setting would be reused silently."""
    make, changes = READ_BY[kind]
    source = pretrain_stage(recipe, 0)
    keys = [make(recipe, source, 0).key, make(recipe, source, 1).key, make(recipe, pretrain_stage(recipe, 1), 0).key]
    keys += [make(recipe.with_overrides(change), source, 0).key for change in changes]
    assert len(set(keys)) == len(keys), keys


def test_controls_and_measurements_are_named_by_all_that_changes_their_result(recipe):
    probes = [{"evaluate.probe.labels": 8}, {"evaluate.probe.draws": 2}]
    controls = [controls_stage(recipe.with_overrides(change)).key for change in ({}, *HELD_OUT, SOURCES, *probes)]
    assert len(set(controls)) == len(controls)
    changes = ({}, {"mask.decoder_ratio": 0.25}, {"measure.steps": 2}, {"measure.size": "small"})
    measured = [measure_stage(recipe.with_overrides(change), 1).key for change in changes] + [measure_stage(recipe, 2).key]
    assert len(set(measured)) == len(measured)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (DataSettings, lambda recipe: pretrain_stage(recipe, 0)),
        (SceneSettings, lambda recipe: detect_stage(recipe, None, 0)),
        (UntrimmedSettings, lambda recipe: localise_stage(recipe, pretrain_stage(recipe, 0), 0)),
    ],
)
def test_other_content_of_the_same_files_is_another_stage(recipe, monkeypatch, settings, make):
    before = make(recipe).key
    monkeypatch.setattr(settings, "fingerprint", property(lambda _: "other content"))
    assert make(recipe).key != before


def test_another_version_of_the_code_is_another_stage(recipe, monkeypatch):
    before = pretrain_stage(recipe, 0).key
    monkeypatch.setattr(PretrainStage, "version", PretrainStage.version + 1)
    assert pretrain_stage(recipe, 0).key != before


def test_two_arms_of_one_setting_are_one_stage(recipe):
    same = {"one": DECODER_MASKS["running_cell_50"], "two": DECODER_MASKS["running_cell_50"]}
    two = recipe.model_copy(update={"arms": ("one", "two"), "seeds": (0,)})
    plan = plan_ablation("x", two, same, lambda recipe, arm, encoder, seed: {"probe": probe_stage(recipe, encoder, seed)})
    assert sum(stage.kind == "pretrain" for stage in plan.stages) == 1


def test_inputs_come_first(recipe):
    plan = plan_notebook(BOOK, recipe)
    seen = set()
    for stage in plan.stages:
        assert all(source.key in seen for source in stage.inputs)
        seen.add(stage.key)
    again = in_order(reversed(plan.stages))
    assert {s.key for s in again} == seen
    assert len(again) == len(seen), "each once"


COUNT = "count.txt"


class CountingStage(Stage):
    kind = "counting"

    sleep: float
    fails: bool = False

    def run(self, job: Job) -> dict:
        with open(job.folder.parent / COUNT, "a") as file:
            file.write("x")
        time.sleep(self.sleep)
        if self.fails:
            raise RuntimeError("on purpose")
        return {"metrics": {"value": 1.0}}


def test_a_finished_stage_is_not_run_again(tmp_path):
    store, stage = RunStore(tmp_path), CountingStage(sleep=0)
    first = store.complete(stage, Compute())
    assert store.complete(stage, Compute()) == first
    assert (tmp_path / COUNT).read_text() == "x"
    assert first["provenance"]["packages"]["torch"]


def test_a_failed_stage_leaves_no_result(tmp_path):
    store, stage = RunStore(tmp_path), CountingStage(sleep=0, fails=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        store.complete(stage, Compute())
    assert not store.finished(stage)


@pytest.mark.slow
def test_an_error_in_another_process_names_its_stage(recipe, tmp_path, monkeypatch, warm):
    """The stage fails because the weights of its input are missing."""
    plan = plan_notebook(BOOK, recipe.with_overrides({"compute.jobs": 2, "seeds": [0]}))
    store, cell = RunStore(tmp_path), plan.cell("scratch", 0)
    store.complete(cell.encoder, Compute())
    (store.folder(cell.encoder) / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot read the checkpoint") as caught:
        store.complete_all([cell.measures["probe"]], plan.recipe.compute)
    assert any(cell.measures["probe"].key in note for note in caught.value.__notes__)
    assert not store.finished(cell.measures["probe"])


def test_a_run_killed_between_training_and_its_result_is_resumed(recipe, home, tmp_path):
    """If a run is killed after training, the next start runs no step, and still reports the seconds per step."""
    stage, store = pretrain_stage(recipe, 0), RunStore(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainStage, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.complete(stage, recipe.compute, progress=False)
    assert not store.finished(stage)
    assert store.complete(stage, recipe.compute, progress=False)["training"]["seconds_per_step"] > 0


def _start(root, began) -> None:
    began.set()
    RunStore(root).complete(CountingStage(sleep=2.0), Compute())


@pytest.mark.slow
def test_a_second_start_waits_for_the_result(tmp_path, capsys, warm):
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    other = context.Process(target=_start, args=(tmp_path, began))
    other.start()
    began.wait(60)
    while not (tmp_path / COUNT).exists():
        time.sleep(0.02)
    result = RunStore(tmp_path).complete(CountingStage(sleep=2.0), Compute())
    other.join()
    assert result["metrics"] == {"value": 1.0}
    assert (tmp_path / COUNT).read_text() == "x", "only the first process ran it"
    assert "another process is working on counting-" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_give_the_same_numbers_as_one(recipe, home, tmp_path, warm):
    """An ablation in this process and in two others gives bit-equal values."""
    plan = plan_notebook(BOOK, recipe.model_copy(update={"seeds": (0,)}))
    spread = plan_notebook(BOOK, plan.recipe.with_overrides({"compute.jobs": 2}))
    stores = [RunStore(tmp_path / "alone"), RunStore(tmp_path / "beside")]
    for each, store in zip((plan, spread), stores, strict=True):
        store.complete_all(each.stages, each.recipe.compute)
    alone, beside = map(plan.rows, stores)
    measured = ~alone.metric.str.contains("seconds|memory")
    pd.testing.assert_frame_equal(alone[measured], beside[measured])
    assert not list((tmp_path / "beside").rglob("checkpoint.pt")), "checkpoints of finished stages are removed"
    settings = next((tmp_path / "alone").glob("pretrain-*")) / "settings.yaml"
    assert "encoder_ratio" in settings.read_text()


def test_a_file_is_complete_or_missing(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(AttributeError), atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("half").no_such_thing()
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_reported_even_if_a_library_hides_it(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 0}))
    with pytest.raises(StorageError, match="disk is full"), atomic_write(tmp_path / "weights"):
        raise RuntimeError("unexpected pos 64 vs 0")  # the message of torch.save


def test_files_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".a.json.999.tmp").write_text("half")
    write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("number", "words"), [(28, "disk is full"), (30, "read-only"), (13, "no permission"), (122, "quota")])
def test_an_unwritable_folder_is_reported_with_the_reason(tmp_path, monkeypatch, number, words):
    def refuse(*_arguments, **_options):
        raise OSError(number, "refused")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StorageError, match=rf"cannot write to {tmp_path}: .*{words}.*VMAE_LAB_PROJECT"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to .*file/runs: a part of the path is a file"):
        make_folder(tmp_path / "file" / "runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compute.jobs": 2},
        {"compute.launch": "two_processes"},
    ],
    ids=["one by one", "side by side", "launched"],
)
def test_stages_share_one_line_of_progress(recipe, home, tmp_path, capfd, monkeypatch, how, warm):
    """This includes writing the embedded data and launched processes."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    stages = [pretrain_stage(recipe, seed) for seed in recipe.seeds]
    changed = recipe.with_overrides({"pretrain.batch_size": 4, **how})
    RunStore(tmp_path).complete_all(stages, changed.compute)
    shown = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if "%" in line]
    assert 1 <= len(shown) <= 12, "one line per 10%, one after a minute, and the last, even on a slow machine"
    assert "2/2 stages 100%" in shown[-1]


@pytest.mark.parametrize(
    ("text", "step"), [("", 0), ('{"step": 7}\n', 7), ('{"step": 7}\n{"step": 8, "lo', 7), ('{"step": 1}\n' * 999, 1)]
)
def test_the_latest_step_of_a_log_that_was_cut_short(tmp_path, text, step):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert latest_step(tmp_path) == step


STOPPED_JOB = """
import json, sys
from pathlib import Path
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import pretrain_stage

if __name__ == "__main__":
    recipe = build_recipe(json.loads(sys.argv[1]))
    stages = [pretrain_stage(recipe, seed) for seed in recipe.seeds]
    RunStore(Path(sys.argv[2])).complete_all(stages, recipe.compute)
"""


@pytest.mark.slow
def test_stages_in_processes_save_on_a_stop_request(recipe, home, tmp_path, warm):
    """SIGTERM goes only to the process that started them, as with `kill`. Each stage saves its state."""
    long = recipe.with_overrides(
        {"compute.jobs": 2, "compute.log_every": 1, "compute.checkpoint_every": 10**6, "pretrain.steps": 10**5}
    )
    (tmp_path / "job.py").write_text(STOPPED_JOB)
    command = [sys.executable, str(tmp_path / "job.py"), json.dumps(long.model_dump(mode="json")), str(tmp_path / "runs")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    store, all_of_them = RunStore(tmp_path / "runs"), [pretrain_stage(long, seed) for seed in long.seeds]
    deadline = time.monotonic() + 120
    while min(store.progress(stage) for stage in all_of_them) == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == STOPPED
    for stage in all_of_them:
        assert not store.finished(stage)
        assert 0 < Checkpoints(store.folder(stage)).load()["step"] < 10**5

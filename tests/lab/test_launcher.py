"""Stages of all kinds in two processes, with and without sharding, started by a launcher or from one process."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from warm_python import forked_pid

from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.launcher import accelerate_config
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import (
    Stage,
    detect_stage,
    distill_stage,
    finetune_stage,
    kept_probe_stage,
    localise_stage,
    post_pretrain_stage,
    pretrain_stage,
    probe_stage,
    views_stage,
)  # fmt: skip
from vmae_lab.training.checkpoint import Checkpoints
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.preemption import STOPPED
from vmae_lab.training.settings import ImpossibleHere

ROOT = Path(__file__).parents[2]
# The job imports this module, which imports warm_python.
MODULES = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "lab")))
JOB = """
import json, sys
from pathlib import Path
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.run_store import RunStore
from test_launcher import every_kind

if __name__ == "__main__":
    recipe = build_recipe(json.loads(sys.argv[1]))
    stages = every_kind(recipe)
    RunStore(Path(sys.argv[2])).complete_all(stages, recipe.compute)
"""


def every_kind(recipe: Recipe) -> list[Stage]:
    first = pretrain_stage(recipe, 0)
    second = post_pretrain_stage(recipe, first, 0)
    tuned = finetune_stage(recipe, second, 0)
    taught = distill_stage(recipe, second, None, 0)
    evaluated = [probe_stage(recipe, first, 0), kept_probe_stage(recipe, first, 0, 2), views_stage(recipe, tuned, 0)]
    detected = [detect_stage(recipe, first, 0), localise_stage(recipe, first, 0)]
    return in_order([first, second, tuned, taught, *evaluated, *detected])


@pytest.fixture(scope="module")
def recipe(smoke) -> Recipe:
    few = {"evaluate.views": {"clips": 2, "crops": 1}}
    few |= {"detect.batch_size": 4, "localise.batch_size": 4}
    # Drop path would be drawn by each process for itself.
    for section in ("post_pretrain", "distill", "evaluate.finetune", "detect", "localise"):
        few |= {f"{section}.drop_path": 0.0, f"{section}.lr": 1e-4, f"{section}.min_lr": 0.0}
    return build_recipe({**smoke, "arms": ["none"], "override": few})


@pytest.fixture(scope="module")
def alone(home, recipe, tmp_path_factory):
    store, stages = RunStore(tmp_path_factory.mktemp("alone")), every_kind(recipe)
    store.complete_all(stages, recipe.compute)
    return store


def output_of(command: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": MODULES}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("config", ["two_processes", "two_processes_sharded"])
def test_every_kind_of_stage_in_two_processes(recipe, alone, tmp_path, config, warm):
    """The numbers equal those of one process up to rounding. Trainings record two processes; each file is written once."""
    (tmp_path / "job.py").write_text(JOB)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config(config))]
    output_of([*launcher, str(tmp_path / "job.py"), json.dumps(recipe.model_dump(mode="json")), str(tmp_path / "runs")])
    store = RunStore(tmp_path / "runs")
    for stage in every_kind(recipe):
        result, expected = store.result(stage), alone.result(stage)
        assert result["metrics"].keys() == expected["metrics"].keys()
        if not stage.steps:
            continue
        assert result["training"]["processes"] == 2
        assert "2 processes x 1 micro-batch x 2 clips" in (store.folder(stage) / "run.log").read_text()
        assert ("sharded" in (store.folder(stage) / "run.log").read_text()) == ("sharded" in config)
        found, known = ([row["loss"] for row in read_metrics(one.folder(stage))] for one in (store, alone))
        assert found == pytest.approx(known, rel=1e-3), stage.kind
    files = {file.name for file in store.folder(every_kind(recipe)[0]).iterdir() if not file.name.startswith(".")}
    assert files >= {"model.safetensors", "config.json", "result.json", "settings.yaml", "metrics.jsonl", "run.log"}
    assert not any(name.startswith(("checkpoint", "turning_point")) for name in files)


@pytest.mark.slow
def test_a_notebook_starts_a_training_in_two_processes(recipe, alone, home, tmp_path, monkeypatch, warm):
    """Two other processes run the stage, and this process returns its result."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    store, stage = RunStore(tmp_path), pretrain_stage(recipe, 0)
    together = recipe.compute.model_copy(update={"launch": str(accelerate_config("two_processes"))})
    result = store.complete(stage, together, progress=False)
    assert result["training"]["processes"] == 2
    losses = [[row["loss"] for row in read_metrics(one.folder(stage))] for one in (store, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert store.complete(stage, together, progress=False) == result, "finished: nothing is started"


@pytest.mark.slow
def test_processes_save_on_a_stop_request(recipe, home, tmp_path, warm):
    """SIGTERM to the process that started the others, as at the end of a job: all processes save and end."""
    changes = {"pretrain.steps": 10**5, "compute.log_every": 1, "compute.checkpoint_every": 10**6}
    changes |= {"compute.launch": str(accelerate_config("two_processes"))}
    long = recipe.with_overrides(changes)
    (tmp_path / "job.py").write_text(JOB.replace("every_kind(recipe)", "every_kind(recipe)[:1]"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": MODULES}
    given = [json.dumps(long.model_dump(mode="json")), str(tmp_path / "runs")]
    process = subprocess.Popen([sys.executable, str(tmp_path / "job.py"), *given], env=environment, stderr=subprocess.DEVNULL)
    folder = tmp_path / "runs" / pretrain_stage(long, 0).key
    deadline = time.monotonic() + 120
    while not read_metrics(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # This process, the launcher and what it started are all children of the server of warm processes.
    everyone = psutil.Process(forked_pid(process.pid)).parent().children(recursive=True)
    assert len(everyone) >= 4
    process.terminate()
    assert process.wait(60) == STOPPED
    assert not psutil.wait_procs(everyone, 10)[1]
    assert 0 < Checkpoints(folder).load()["step"] < 10**5


def test_one_training_has_all_the_devices(recipe):
    with pytest.raises(RecipeError, match=r"compute: jobs 2 with launch eight_gpus.*set jobs 1"):
        recipe.with_overrides({"compute.launch": "eight_gpus", "compute.jobs": 2})


def test_a_stage_can_be_sent_to_another_process(recipe):
    for stage in every_kind(recipe):
        assert pickle.loads(pickle.dumps(stage)).settings == stage.settings


def test_an_unknown_configuration_is_reported_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"no accelerate configuration .*nine_gpus\.yaml; .*: .*two_processes"):
        accelerate_config("nine_gpus")


@pytest.mark.parametrize("file", sorted((ROOT / "params" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configurations_are_accelerates(file):
    """accelerate reads them without an error about unknown names."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes % config.num_machines == 0
    if config.num_machines > 1:
        with pytest.raises(ImpossibleHere, match=r"8 machines.*docs/slurm\.sh"):
            accelerate_config(file.stem)
    assert config.mixed_precision == "no", "the recipe sets the precision"


@pytest.mark.slow
def test_a_launched_process_that_fails_is_reported(recipe, home, tmp_path, monkeypatch, capfd, warm):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    odd = recipe.with_overrides({"pretrain.batch_size": 5})
    together = recipe.compute.model_copy(update={"launch": str(accelerate_config("two_processes"))})
    with pytest.raises(RuntimeError, match=r"pretrain-.* failed in the processes .*two_processes\.yaml"):
        RunStore(tmp_path).complete(pretrain_stage(odd, 0), together, progress=False)
    assert "batch_size 5 cannot be split into 2 processes" in capfd.readouterr().err
    assert pickle.loads(next(tmp_path.glob("pretrain-*/launch.pickle")).read_bytes())[2] is False, "no progress bar"

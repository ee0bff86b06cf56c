"""Evaluation in a precision, with loader workers, and shared by processes."""

import os
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from test_multi_view import MODEL, VIEWS, NumberedClips, classifier

from vmae_lab.data.ava import SceneSettings, open_scenes
from vmae_lab.data.eval_clips import MissingVideos, evaluated_clips
from vmae_lab.data.motionworld.scenes import SceneWorldSettings
from vmae_lab.evaluation.features import encode_clips
from vmae_lab.evaluation.inference import Inference
from vmae_lab.evaluation.multi_view import view_probabilities
from vmae_lab.evaluation.probes import extract_tokens
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.stages.inputs import inference
from vmae_lab.masking import MaskSettings
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.detect import DetectSettings, detect
from vmae_lab.training.tasks.finetune import predict
from vmae_lab.training.tasks.localise import LocaliseSettings, localise
from vmae_lab.utils import precision
from vmae_lab.utils.precision import float32_products, uses_bf16
from vmae_lab.utils.seeding import seeded


class FewClips(NumberedClips):
    """The same videos, which can also be read one at a time."""

    def video(self, row, choose, short_side=None):
        [video] = self.videos([row], choose)
        if isinstance(video, Exception):
            raise video
        return video


def evaluated(clips: FewClips, how: Inference) -> dict[str, torch.Tensor]:
    """The results of all evaluations of clips."""
    with seeded(0, "model"):
        model = VideoMAE(MODEL.dimensions, MODEL.clip)
    rows, classes = range(len(clips)), classifier()
    return {
        "logits": predict(classes, clips, MODEL, 2, inference=how),
        "views": torch.from_numpy(view_probabilities(classes, clips, MODEL, 2, VIEWS, how)),
        "tokens": extract_tokens(model.encoder, clips, rows, MODEL, 2, inference=how),
        "errors": torch.tensor(list(reconstruction_errors(model, clips, MODEL, MaskSettings(), 2, how).values())),
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return evaluated(FewClips(40), Inference("fp32"))


def test_the_default_on_a_cpu_is_float32(plain):
    for name, values in evaluated(FewClips(40), Inference()).items():
        assert torch.equal(values, plain[name]), name


def test_bf16_changes_results_a_little_and_returns_float32(plain):
    for name, values in evaluated(FewClips(40), Inference("bf16")).items():
        assert values.dtype == plain[name].dtype
        assert not torch.equal(values, plain[name]), name
        torch.testing.assert_close(values, plain[name], atol=0.1, rtol=0.1)
    video = next(evaluated_clips(FewClips(2), range(2), MODEL.frames, 2, MODEL.side))
    encoder = classifier().encoder.eval()
    half, full = (encode_clips(encoder, None, video, precision=chosen) for chosen in ("bf16", "fp32"))
    assert half.dtype == full.dtype == torch.float32
    assert not torch.equal(half, full)


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_bf16_on_a_gpu_that_supports_it(monkeypatch, native):
    monkeypatch.setattr(precision, "bf16_is_native", lambda: native)
    devices = [torch.device(name) for name in ("cuda", "cpu", "mps")]
    assert [uses_bf16("auto", device) for device in devices] == [native, False, False]
    assert not any(uses_bf16("fp32", device) for device in devices)


@pytest.mark.parametrize("allowed", [False, True])
def test_float32_products_of_gpus_are_set_for_a_block(monkeypatch, allowed):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_products(not allowed):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before, "a CPU is left as it is"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with float32_products(allowed):
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cudnn.allow_tf32 == allowed
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


# ---------------------------------------------------------------------------------------------------------------------------
# Loader workers


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_results(plain, workers):
    before = set(active_children())
    for name, values in evaluated(FewClips(40), inference(Compute(workers=workers))).items():
        assert torch.equal(values, plain[name]), name
    assert not {child for child in active_children() if child not in before}, "they end with the evaluation"


def test_workers_report_all_unreadable_videos():
    with pytest.raises(MissingVideos, match="2 of 40 videos") as raised:
        predict(classifier(), FewClips(40, (3, 35)), MODEL, 2, inference=inference(Compute(workers=2)))
    assert list(raised.value.failed) == [3, 35]


# ---------------------------------------------------------------------------------------------------------------------------
# Processes


def predictions() -> dict[str, np.ndarray]:
    """What classifier and detectors predict. Key frames have one size, so batches do not depend on the number of processes."""
    from test_draws import FormulaFeatures, FormulaVideos, localise_task

    world = SceneSettings(motionworld=SceneWorldSettings(side=32, distance=1.4, train=6, validation=2, test=3))
    scenes, settings = open_scenes(world, "train"), DetectSettings(
        scenes=world, steps=1, batch_size=2, lr=1e-3, stride=2, side=24, test_short_side=24,
        augment={"short_side": (24, 30), "flip": 0.0},
    )  # fmt: skip
    with seeded(0, "detectors"):
        detector = ActionDetector(MODEL.dimensions, MODEL.clip, len(scenes.actions), init_scale=1.0)
        localiser = ActionFormer(ActionFormerShape(**localise_task().settings.shape.model_dump()), 8, ("jump", "run", "throw"))
    features = FormulaFeatures()
    features.times = lambda steps, rate: steps / rate
    boxes = detect(detector, scenes, settings, MODEL, ["true"], batch=1)["true"]
    keep_all = LocaliseSettings.model_validate({**localise_task().settings.model_dump(), "suppress": {"least_score": 0.0}})
    segments = localise(localiser, FormulaVideos(features).annotations.videos, features, keep_all)
    assert len(boxes) > 8
    assert segments.video.nunique() == 6
    return {
        "logits": predict(classifier(), FewClips(40), MODEL, 2).numpy(),
        "boxes": boxes.score.to_numpy(),
        "segments": segments[["start", "end", "score"]].to_numpy(),
        "videos": segments.video.to_numpy().astype(str),
    }


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import numpy as np, torch
from accelerate import PartialState
from test_inference import FewClips, MODEL, MissingVideos, classifier, predict, predictions
torch.set_num_threads(1)
state = PartialState(cpu=True)
assert state.num_processes == 2
np.savez({folder!r} + f"/{{state.process_index}}.npz", **predictions())
try:
    predict(classifier(), FewClips(40, (3, 35)), MODEL, 2)
except MissingVideos as missing:
    np.save({folder!r} + f"/missing-{{state.process_index}}.npy", list(missing.failed))
"""


@pytest.mark.slow
def test_two_processes_predict_what_one_predicts(home, tmp_path, warm):
    """40 clips are two batches, one for each process. Each process reports all unreadable videos."""
    here = Path(__file__).parent
    (tmp_path / "two.py").write_text(SCRIPT.format(paths=[str(here), str(here.parent)], folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    done = subprocess.run(
        [*command, sys.executable, str(tmp_path / "two.py")], capture_output=True, text=True, timeout=600,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = predictions()
    finally:
        torch.set_num_threads(threads)
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as found:
            for name, values in alone.items():
                assert np.array_equal(found[name], values), name
        assert np.load(tmp_path / f"missing-{index}.npy").tolist() == [3, 35]

"""How each kind of stage is carried out: settings and the folders of its inputs in, files and a result out."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.evaluation.classification import prediction_table, score_intervals, scores, top1
from vmae_lab.evaluation.multi_view import ViewSettings, view_probabilities
from vmae_lab.evaluation.pixel_baselines import raw_pixel_accuracy, single_frame_accuracies
from vmae_lab.evaluation.probes import ProbeSettings, classical_answers, draw_labelled, labelled_draws, pooled_only
from vmae_lab.lab.detecting import run_detect, run_features, run_localise
from vmae_lab.lab.jobs import Job, input_encoder_state, save_model, training_cost
from vmae_lab.lab.loading import corrupt_videos_in, held_out_clips, load_split, set_aside
from vmae_lab.lab.measure import measure_step
from vmae_lab.lab.readouts import attentive_answers, load_classifier, load_encoder, pretrained_errors, read_with
from vmae_lab.lab.stages import PREDICTIONS, WEIGHTS
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import read_weights
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.checkpoint import kept_file
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.distill import DistillSettings, DistillTask, Teacher
from vmae_lab.training.tasks.finetune import FinetuneSettings, FinetuneTask, predict
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.atomic_io import atomic_write
from vmae_lab.utils.processes import fixed_threads, process_state
from vmae_lab.utils.seeding import derive, numpy_generator, seeded


def execute(job: Job) -> dict[str, Any]:
    """Carry a stage out; returns what goes into its `result.json`."""
    with fixed_threads(job.compute.threads):
        return RUNS[job.stage.kind](job)


def _load(job: Job, split: str, sources: list[str]) -> tuple[DataSettings, Clips]:
    return load_split(job.stage.settings, split, sources, job.compute)


def _held_out(job: Job, sources: list[str]) -> tuple[Clips, dict[str, Any]]:
    return held_out_clips(job.stage.settings, sources, job.compute)


def _run_pretrain(job: Job) -> dict[str, Any]:
    data = DataSettings(**job.section("data"))
    _, clips = _load(job, "pretrain", list(data.pretrain_sources))
    task = PretrainTask(
        ModelSettings(**job.section("model")), MaskSettings(**job.section("mask")),
        PretrainSettings(**job.section("pretrain")), data, clips, job.section("seed"), corrupt_videos_in(job.folder),
    )  # fmt: skip
    trained = train(task, job.folder, job.compute, job.progress, task.settings.kept_steps)
    save_model(job, trained.model)
    return {
        "metrics": {}, "training": training_cost(trained), "samples_by_source": task.samples_by_source(),
        **set_aside(task.corrupt_videos),
    }  # fmt: skip


def _run_initial(job: Job) -> dict[str, Any]:
    settings = ModelSettings(**job.section("model"))
    with seeded(job.section("seed"), "initial weights"):
        model = VideoMAE(settings.dimensions, settings.clip)
    save_model(job, model)
    return {"metrics": {}}


def _run_opened(job: Job) -> dict[str, Any]:
    """A checkpoint from outside, as a folder like that of a stage that trained it."""
    config, model, where = ModelConfig(**job.section("config")), ModelSettings(**job.section("model")), job.stage.where
    if config.model == "VideoMAE":
        opened: Pretrained = VideoMAE.from_pretrained(where, frames=model.frames, side=model.side)
    else:
        with warnings.catch_warnings():  # of a head that does not fit: then only the encoder is taken
            warnings.simplefilter("ignore")
            opened = VideoClassifier.from_pretrained(
                where, classes=config.classes or 1, frames=model.frames, side=model.side
            )  # fmt: skip
    if process_state().is_main_process:
        opened.save_pretrained(job.folder, story=f"Stage `{job.stage.key}` of a run of vmae_lab: opened from {where}.")
    return {"metrics": {}, "opened": where}


def _run_probe(job: Job) -> dict[str, Any]:
    model, settings = ModelSettings(**job.section("model")), ProbeSettings(**job.section("probe"))
    step = job.stage.settings.get("step")
    data, weights = DataSettings(**job.section("data")), job.input_folders[0] / (kept_file(step) if step else WEIGHTS)
    read = read_with(load_encoder(model, weights), job.stage.settings, job.compute, pooled_only(settings.probes))
    accuracies: dict[str, list[float]] = {probe: [] for probe in settings.probes}
    for draw, (tokens, labels) in enumerate(read.draws()):
        if job.stage.settings.get("labels_shuffled"):
            labels = numpy_generator(job.section("seed"), "shuffled labels", draw).permutation(labels)
        for probe in settings.probes:
            if probe == "attentive":
                predicted = attentive_answers(
                    job.folder / f"attentive-{draw}", job.compute, settings, model, data.classes,
                    derive(job.section("seed"), "attentive probe", draw), tokens, labels, read.test_tokens,
                )  # fmt: skip
            else:
                predicted = classical_answers(probe, tokens, labels, read.test_tokens, model.clip.grid)
            accuracies[probe].append(top1(predicted, read.held_out.labels))
    metrics = {probe: float(np.mean(values)) for probe, values in accuracies.items()}
    source = job.stage.inputs[0]
    if source.kind == "pretrain" and not {"step", "labels_shuffled"} & job.stage.settings.keys():
        metrics |= pretrained_errors(weights, source.settings, read.held_out, data.stride)
    return {"metrics": metrics, "draws": accuracies, **read.said}


def _run_finetune(job: Job) -> dict[str, Any]:
    count = job.section("labels")
    data, clips = _load(job, "train", job.section("sources"))
    rows = np.arange(len(clips)) if count is None else draw_labelled(clips.labels, count, data.seed, job.section("seed"))
    return _supervised(job, "finetune", data, clips, rows, *_held_out(job, job.section("sources")))


def _run_post_pretrain(job: Job) -> dict[str, Any]:
    """On the pool that is pre-trained on, with its labels; evaluated on held-out clips of the same sources."""
    sources = list(DataSettings(**job.section("data")).pretrain_sources)
    data, clips = _load(job, "pretrain", sources)
    return _supervised(job, "post_pretrain", data, clips, np.arange(len(clips)), *_held_out(job, sources))


def _supervised(
    job: Job, section: str, data: DataSettings, clips: Clips, rows: np.ndarray, held_out: Clips, said: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Train a classifier on some labelled clips, from the input stage's encoder where there is one; top-1 on held-out ones."""
    model = ModelSettings(**job.section("model"))
    state = input_encoder_state(job.input_folders[0]) if job.input_folders else None
    task = FinetuneTask(
        model, FinetuneSettings(**job.section(section)), data, clips, rows.tolist(), state, job.section("seed"),
        corrupt_videos_in(job.folder),
    )  # fmt: skip
    trained = train(task, job.folder, job.compute, job.progress)
    save_model(job, trained.model)
    answers = predict(trained.model, held_out, model, data.stride, task.settings.sampling)
    accuracy = top1(answers.argmax(1).numpy(), held_out.labels)
    return {
        "metrics": {section: accuracy}, "training": training_cost(trained), "labelled_clips": len(rows), **said,
        **set_aside(task.corrupt_videos),
    }  # fmt: skip


def _run_distill(job: Job) -> dict[str, Any]:
    """On the pool that is pre-trained on; where that has labels, judged beside the teacher on held-out clips."""
    model, teacher = ModelSettings(**job.section("model")), job.stage.inputs[0]
    sources = list(DataSettings(**job.section("data")).pretrain_sources)
    data, clips = _load(job, "pretrain", sources)
    taught_by = Teacher(
        read_weights(job.input_folders[0] / WEIGHTS), ModelSettings(**teacher.settings["model"]),
        teacher.settings[teacher.kind]["readout"],
    )  # fmt: skip
    task = DistillTask(
        model, DistillSettings(**job.section("distill")), data, clips, list(range(len(clips))),
        input_encoder_state(job.input_folders[1]) if job.input_folders[1:] else None, taught_by, job.section("seed"),
        corrupt_videos_in(job.folder),
    )  # fmt: skip
    trained = train(task, job.folder, job.compute, job.progress)
    save_model(job, trained.model.classifier)
    result = {"metrics": {}, "training": training_cost(trained), "clips": len(clips), **set_aside(task.corrupt_videos)}
    if not data.labelled:
        return result
    held_out, said = _held_out(job, sources)
    ours, theirs = (
        predict(one, held_out, model, data.stride, task.settings.sampling).argmax(1).numpy()
        for one in (trained.model.classifier, task.teacher)
    )
    metrics = {
        "distill": top1(ours, held_out.labels),
        "distill_teacher": top1(theirs, held_out.labels),
        "distill_agreement": top1(ours, theirs),
    }
    return {**result, "metrics": metrics, **said}


def _run_views(job: Job) -> dict[str, Any]:
    """Scores of the averaged views and their bootstrap intervals; what was said of every video is kept beside them."""
    data, model = DataSettings(**job.section("data")), ModelSettings(**job.section("model"))
    source, folder = job.stage.inputs[0], job.input_folders[0]
    if source.kind == "opened":
        classifier = VideoClassifier.from_pretrained(folder).to(process_state().device)
    else:
        classifier = load_classifier(source.settings, folder / WEIGHTS)
    held_out, said = _held_out(job, job.section("sources"))
    views = ViewSettings(**job.section("views"))
    probabilities = view_probabilities(classifier, held_out, model, data.stride, views)
    names = [held_out.name(row) for row in range(len(held_out))]
    if process_state().is_main_process:
        with atomic_write(job.folder / PREDICTIONS) as temporary:
            prediction_table(probabilities, held_out.labels, names, data.class_names).to_parquet(temporary, index=False)
    metrics = {f"views_{name}": value for name, value in scores(probabilities, held_out.labels).items()}
    intervals = score_intervals(probabilities, held_out.labels, data.seed)
    return {"metrics": metrics, "intervals": {f"views_{name}": pair for name, pair in intervals.items()}, **said}


def _run_controls(job: Job) -> dict[str, Any]:
    model = ModelSettings(**job.section("model"))
    data, clips = _load(job, "train", job.section("sources"))
    held_out, said = _held_out(job, job.section("sources"))
    assert isinstance(clips, MemmapDataset), "controls are of the embedded data set alone"
    assert isinstance(held_out, MemmapDataset)
    few = ProbeSettings(labels=job.section("labels"), draws=job.section("draws"))
    draws = labelled_draws(clips.labels, few, data.seed)
    raw = [raw_pixel_accuracy(clips, held_out, rows, model, data.stride) for rows in draws]
    frames = single_frame_accuracies(clips, held_out, model.side)
    metrics = {
        "raw_pixels": float(np.mean(raw)),
        "single_frame_mean": float(np.mean(frames)),
        "single_frame_best": float(np.max(frames)),
    }
    return {"metrics": metrics, "single_frames": frames, **said}


def _run_measure(job: Job) -> dict[str, Any]:
    model, masks = ModelSettings(**job.section("model")), MaskSettings(**job.section("mask"))
    # On all cores, whatever the other stages use: it runs alone, and the fixed threads of this process are not its own.
    measured = measure_step(model, masks, job.section("batch_size"), job.section("steps"))
    return {"metrics": {name: value for name, value in measured.items() if name != "fits"}, "fits": measured["fits"]}


RUNS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "pretrain": _run_pretrain,
    "initial": _run_initial,
    "probe": _run_probe,
    "post_pretrain": _run_post_pretrain,
    "finetune": _run_finetune,
    "views": _run_views,
    "distill": _run_distill,
    "controls": _run_controls,
    "measure": _run_measure,
    "detect": run_detect,
    "features": run_features,
    "localise": run_localise,
    "opened": _run_opened,
}

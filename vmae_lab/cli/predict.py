"""`vmae-lab predict`: predict the classes of videos, or of windows along long videos."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vmae_lab.cli.data import FRAMES_NAMED, FollowLinks, FramePattern, Labelled, Root
from vmae_lab.cli.parameters import Device, output_file
from vmae_lab.utils.counts import counted

if TYPE_CHECKING:
    import pandas as pd

    from vmae_lab.data.decoding import VideoError
    from vmae_lab.data.video_dataset import VideoDataset
    from vmae_lab.evaluation.predict import Prediction, Timeline
    from vmae_lab.models.classifier import VideoClassifier

commands = typer.Typer()
TIMELINE, SEGMENTS, DETECTIONS = "timeline.csv", "segments.csv", "detections.csv"  # default files of results
LINES = 20  # of a table on the screen
CLASSIFIER = "classifier"  # any model that is not the folder of a localise or detect stage
OPTIONS_OF = {  # options that have an effect for some kinds of models only
    CLASSIFIER: (
        "names", "top", "along", "clips", "crops", "stride", "sampling", "frames", "side", "positions",
    ),
    "localise": ("encoder",),
    "detect": ("top", "along", "persons", "person_weights"),
}  # fmt: skip
MODELS = {CLASSIFIER: "a classifier", "localise": "the folder of a localise stage", "detect": "the folder of a detect stage"}
WITHOUT_EFFECT = (("persons", "along"), ("persons", "person_weights"), ("along", "clips"))  # the first makes the second useless
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A trained model: a stage's folder, a file, or a name on the Hugging Face hub.")
]
FramesOption = Annotated[int | None, typer.Option(min=1, help="Frames per clip. Default: those of the model.")]
SideOption = Annotated[
    str | None,
    typer.Option(metavar="PIXELS", help="Clip height and width, for example 224 or 192x256. Default: those of the model."),
]
PositionsOption = Annotated[
    Literal["interpolate", "recompute"] | None,
    typer.Option(help="Positions if --frames or --side differ from training. Default: interpolate."),
]


def checked_side(side: str | None) -> int | tuple[int, int] | None:
    """Return the side of clips from the text of an option. Raises BadParameter."""
    from vmae_lab.utils.shapes import parse_side

    try:
        return parse_side(side)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--side") from None


@commands.command(
    epilog="\b\nExamples:\n  vmae-lab predict runs/finetune-0123456789ab video.mp4\n"
    "  vmae-lab predict MCG-NJU/videomae-base-finetuned-kinetics folder --top 3 --out results.csv\n"
    "  vmae-lab predict path/to/model long.mp4 --along 1"
)
def predict(
    context: typer.Context,
    model: Model,
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Video files, folders, globs or list files.")],
    names: Annotated[
        Path | None, typer.Option(help="File with one class name per line, in label order. Default: the names in the model.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show, the most probable first.")] = 5,
    along: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            max=1e6,
            help="For long videos: predict one window every SECONDS seconds. "
            "For a detect stage: seconds between two frames. Default of a detect stage: 1.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=output_file(".csv", ".json"),
            help=f"File for the results, .csv or .json. Default with --along: {TIMELINE}.",
        ),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips per video, spread over its length.")] = 5,
    crops: Annotated[int, typer.Option(min=1, help="Crops per clip, spread along the longer direction of the frame.")] = 3,
    stride: Annotated[
        int | None, typer.Option(min=1, help="A clip takes every N-th frame. Default: as in training, or 4 if that is unknown.")
    ] = None,
    sampling: Annotated[
        Literal["dense", "sparse"] | None,
        typer.Option(help="Consecutive frames, or one frame of each of equal segments. Default: as in training, or dense."),
    ] = None,
    frames: FramesOption = None,
    side: SideOption = None,
    positions: PositionsOption = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="For a localise stage: the model of its features, if it is not next to the stage."),
    ] = None,
    persons: Annotated[
        Path | None,
        typer.Option(help="For a detect stage: boxes of people from `vmae-lab persons`. Default: people are detected."),
    ] = None,
    person_weights: Annotated[
        Path | None,
        typer.Option(help="For a detect stage: weights of torchvision's person detector. Default: published ones."),
    ] = None,
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    frame_pattern: FramePattern = FRAMES_NAMED,
    device: Device = None,
) -> None:  # fmt: skip
    """Predict the classes of videos. The exit status is 1 if a video cannot be read.

    The probabilities are averaged over views: 5 clips x 3 crops by default, as in the official test protocol. The folder of a
    localise stage gives segments with their classes instead, and that of a detect stage the actions of each person, by default
    in one frame per second. Names, views and the shape of clips can only be set for classifiers. An option that has no effect
    for the kind of model is an error.
    """
    from vmae_lab.utils.atomic_io import make_folder
    from vmae_lab.utils.processes import chosen_device

    kind = _stage_kind(model)
    _refuse_unused(context, kind, model)
    defaults = {"localise": Path(SEGMENTS), "detect": Path(DETECTIONS)}
    out = out or defaults.get(kind, Path(TIMELINE) if along else None)  # None: results are only printed
    if out:
        make_folder(out.parent)  # if it cannot be written, fail now and not after hours
    used = chosen_device(device)
    dataset = _dataset(videos, root, labelled, follow_links, frame_pattern)
    with closing(dataset.decoders):
        if kind == "localise":
            from vmae_lab.lab.predict_stage import predict_segments

            _print_detections(predict_segments(Path(model), dataset, encoder, used), "segments", out)
        elif kind == "detect":
            from vmae_lab.detection.person_detector import TorchvisionDetector
            from vmae_lab.lab.predict_stage import predict_boxes

            people = persons or TorchvisionDetector(person_weights, str(used))
            _print_detections(predict_boxes(Path(model), dataset, people, along or 1.0, top, used), "detections", out)
        else:
            from vmae_lab.evaluation.predict import open_classifier, read_names

            opened = open_classifier(model, frames, checked_side(side), positions).to(used)
            if names:
                opened.class_names = read_names(names, opened, model)
            _predict_classes(opened, dataset, along, clips, crops, stride, sampling, top, out)


def _predict_classes(
    model: "VideoClassifier", dataset: "VideoDataset", along: float | None, clips: int, crops: int, stride: int | None,
    sampling: Literal["dense", "sparse"] | None, top: int, out: Path | None,
) -> None:  # fmt: skip
    """Predict and print the classes of each video, or with `along` those of its windows. Raises PredictionError."""
    from vmae_lab.evaluation.multi_view import ViewSettings
    from vmae_lab.evaluation.predict import PredictionError, predict_videos, predict_videos_along, sampling_of

    stride, default = sampling_of(model, stride)
    views = ViewSettings(clips=clips, crops=crops, sampling=sampling or default.sampling)
    if along is None:
        _print_predictions(predict_videos(model, dataset, stride, views), len(dataset), top, out)
        return
    if views.sampling == "sparse":
        raise PredictionError("--along takes windows of consecutive frames, but sampling is sparse; add --sampling dense")
    assert out is not None  # a timeline is always written
    _print_timelines(predict_videos_along(model, dataset, along, stride, crops), len(dataset), top, out)


def _stage_kind(model: str) -> str:
    """Return the kind of a stage from its folder: `localise`, `detect`, or CLASSIFIER for all other models."""
    import yaml

    file = Path(model, "settings.yaml")
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    kind = settings.get("stage") if isinstance(settings, dict) else None
    return kind if kind in OPTIONS_OF else CLASSIFIER


def _refuse_unused(context: typer.Context, kind: str, model: str) -> None:
    """Raise BadParameter if the command has an option that has no effect for this kind of model, or with another option."""
    names = {name for options in OPTIONS_OF.values() for name in options}
    given = [name for name in context.params if name in names and _is_given(context, name)]
    for name in given:
        if name not in OPTIONS_OF[kind]:
            kinds = " and ".join(MODELS[other] for other, options in OPTIONS_OF.items() if name in options)
            raise typer.BadParameter(
                f"{_flag(name)} has no effect here: it is for {kinds}, but {model} is read as {MODELS[kind]}"
            )
    for name, useless in WITHOUT_EFFECT:
        if name in given and useless in given:
            raise typer.BadParameter(f"{_flag(useless)} has no effect with {_flag(name)}; omit one of them")


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"  # by name: typer may have its own class instead of click's


def _flag(name: str) -> str:
    """Return the name of an option on the command line."""
    return f"--{name.replace('_', '-')}"


def _dataset(
    videos: Sequence[str], root: str, labelled: bool, follow_links: bool, frame_pattern: str
) -> "VideoDataset":  # fmt: skip
    """Return the videos of all arguments, also missing files, which are reported with the unreadable ones. Raises ListError."""
    import pandas as pd

    from vmae_lab.cli.data import open_list
    from vmae_lab.data.decoding import VideoSettings
    from vmae_lab.data.decoding.container import is_url
    from vmae_lab.data.video_dataset import clips_of
    from vmae_lab.data.video_lists import VideoList
    from vmae_lab.data.video_lists.folders import VIDEO_SUFFIXES, is_video

    lists = {}
    for number, argument in enumerate(videos):
        path = Path(root, argument)
        plain = not is_url(argument) and not any(letter in argument for letter in "*?[")
        if plain and path.suffix.lower() in VIDEO_SUFFIXES and not path.exists():
            opened = VideoList(path.parent.absolute(), pd.DataFrame({"path": [path.name], "label": [-1]}), ())
        else:
            single = path.is_file() and is_video(path)
            opened = open_list(argument, root, labelled and not single, follow_links)
        lists[str(number)] = (opened, frame_pattern)
    return clips_of(lists, VideoSettings(follow_links=follow_links))


def _print_predictions(
    results: "Iterable[tuple[str, Prediction | VideoError]]", videos: int, top: int, out: Path | None
) -> None:  # fmt: skip
    """Print the most probable classes of each video, and write them to `out`."""
    import pandas as pd

    predictions, failed = _collect(results, videos)
    tables = [(_shown(prediction.video), prediction.table(top)) for prediction in predictions]
    if tables:
        named = [table.assign(video=[video, *[""] * (len(table) - 1)]) for video, table in tables]
        _print_table(pd.concat(named)[["video", "rank", "class", "probability"]])
    _finish(tables, failed, out, lambda table: {"predictions": table.to_dict("records")})


def _print_timelines(
    results: "Iterable[tuple[str, Timeline | VideoError]]", videos: int, top: int, out: Path
) -> None:  # fmt: skip
    """Print the segments of each video, and write its windows and a figure."""
    from vmae_lab.lab.plots.predictions import timeline
    from vmae_lab.lab.plots.style import save_figure, use_style

    timelines, failed = _collect(results, videos)
    use_style()
    tables = []
    for number, predicted in enumerate(timelines, start=1):
        video = _shown(predicted.video)
        tables.append((video, predicted.table(top)))
        windows = len(predicted.start_s)
        print(f"{video}: {counted(windows, 'window')}")
        _print_table(predicted.segments().rename(columns={"probability": "mean probability"}))
        name = out.stem if len(timelines) == 1 else f"{out.stem}-{number}-{Path(predicted.video).stem}"
        note = _replaced(out.with_name(f"{name}.png"))
        print(f"figure: {save_figure(timeline(predicted, video), out.parent, name)}{note}")
    times = ["start_s", "end_s"]
    _finish(tables, failed, out, lambda table: {
        "windows": [
            {"start_s": start, "end_s": end, "predictions": part.drop(columns=times).to_dict("records")}
            for (start, end), part in table.groupby(times, sort=False)
        ]
    })  # fmt: skip


def _print_detections(results: "Iterable[tuple[str, pd.DataFrame | VideoError]]", what: str, out: Path | None) -> None:
    """Print the first segments or detections of each video, and write all of them. `what` is their name in the results."""
    from vmae_lab.data.decoding import VideoError

    tables: list[tuple[str, pd.DataFrame]] = []
    failed: list[VideoError] = []
    for name, result in results:
        if isinstance(result, VideoError):
            failed.append(result)
            continue
        tables.append((_shown(name), result))
        print(f"{_shown(name)}: {len(result)} {what}")
        columns = [column for column in ("start_s", "end_s", "time_s", "person", "class", "score") if column in result]
        _print_table(result[columns].head(LINES))
        if len(result) > LINES:
            print(f"and {len(result) - LINES} more")
    _finish(tables, failed, out, lambda table: {what: table.to_dict("records")})


def _collect(results: "Iterable[tuple[str, Any]]", videos: int) -> "tuple[list[Any], list[VideoError]]":
    """Return the results of the readable videos, and the errors of the others. Shows the progress over several videos."""
    from vmae_lab.data.decoding import VideoError
    from vmae_lab.utils.progress import Progress

    predicted: list[Any] = []
    failed: list[VideoError] = []
    with Progress(results, total=videos, unit="videos", desc="predict", disable=videos == 1) as bar:
        for _, result in bar:
            if isinstance(result, VideoError):
                failed.append(result)
            else:
                predicted.append(result)
    return predicted, failed


def _print_table(table: "pd.DataFrame") -> None:
    """Print a table if it has rows: columns `..._s` in seconds, probabilities and scores in percent."""
    from tabulate import tabulate

    from vmae_lab.utils.atomic_io import readable

    def cell(column: str, value: Any) -> Any:
        if column.endswith("_s"):
            return f"{value:.1f} s"
        return f"{value:.1%}" if column.endswith(("probability", "score")) else value

    if len(table):
        rows = [[cell(column, value) for column, value in row.items()] for row in table.to_dict("records")]
        headers = [column.removesuffix("_s") for column in table]
        align = ["left" if header in ("video", "class") else "right" for header in headers]
        print(readable(tabulate(rows, headers, "simple", disable_numparse=True, colalign=align)))


def _finish(
    tables: "Sequence[tuple[str, pd.DataFrame]]", failed: "Sequence[VideoError]", out: Path | None,
    described: "Callable[[pd.DataFrame], dict[str, Any]]",
) -> None:  # fmt: skip
    """Write the results and report unreadable videos on the error stream. Exits with status 1 if there are any."""
    import pandas as pd

    from vmae_lab.utils.atomic_io import write_json, write_text

    if out:
        note = _replaced(out)
        if out.suffix == ".json":
            results = [{"video": video, **described(table)} for video, table in tables]
            write_json(out, [*results, *({"video": _shown(error.path), "error": error.cause} for error in failed)])
        else:
            parts = [table.assign(video=video) for video, table in tables]
            table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["video"])
            write_text(out, table[["video", *(name for name in table if name != "video")]].to_csv(index=False))
        print(f"results: {out}{note}")
    for error in failed:
        print(f"vmae-lab: cannot read {error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _replaced(file: Path) -> str:
    """Return a note for the name of a file that will be written, if it exists already."""
    return " (replaces the earlier file; --out sets another name)" if file.exists() else ""


def _shown(path: str) -> str:
    """Return a path, relative to the current folder if it is inside it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative

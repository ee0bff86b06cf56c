"""`vmae-lab features …`: the features of windows along the videos of a list, a file a video."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from vmae_lab.cli.data import FollowLinks, FramePattern, Labelled, Listed, Root, named_after_list, open_list
from vmae_lab.data.decoding import VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.evaluation.features import FAILURES, WINDOWS, FeatureSettings, Format, extract_features, open_encoder

commands = typer.Typer()
FIELDS = FeatureSettings.model_fields


@commands.command(
    epilog="\b\nExample:\n  vmae-lab features path/to/list.csv --root path/to/videos --model path/to/model --stride 4"
)
def features(
    listed: Listed,
    model: Annotated[str, typer.Option(help="Folder, file or the hub's name of a model.")],
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip, where not the model's own.")] = None,
    side: Annotated[int | None, typer.Option(min=1, help="Side of a clip, where not the model's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results: by default <list>.features here.")] = None,
    stride: Annotated[int, typer.Option(min=1, help=FIELDS["stride"].description)] = FIELDS["stride"].default,
    form: Annotated[Format, typer.Option("--format")] = FIELDS["format"].default,
    frame: Annotated[Literal["squash", "centre"], typer.Option(help=FIELDS["frame"].description)] = FIELDS["frame"].default,
    scale_only: Annotated[bool, typer.Option("--scale-only", help=FIELDS["scale_only"].description)] = False,
    batch: Annotated[int, typer.Option(min=1, help="Windows that go through the model at a time.")] = 8,
    chunk: Annotated[int, typer.Option(min=1, help="Frames of a video that are held at a time.")] = 1024,
    frame_pattern: FramePattern = FRAMES,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Exit with status 0 though videos could not be read.")
    ] = False,
) -> None:
    """Write the features of windows along videos, a file a video.

    Goes on where it was interrupted; exit status 1 where a video could not be read.
    """
    settings = FeatureSettings(stride=stride, frame=frame, scale_only=scale_only, format=form)
    videos = open_list(listed, root, labelled, follow_links)
    encoder, norm = open_encoder(model, frames, side, device)
    clips = clips_of({"features": (videos, frame_pattern)}, VideoSettings(follow_links=follow_links))
    folder = out or named_after_list(listed, root, "features")
    done = extract_features(encoder, clips, folder, settings, norm, batch, chunk)
    clips.decoders.close()
    print(f"{len(clips) - len(done.failed)} of {len(clips)} videos, {len(done.windows)} windows")
    for error in list(done.failed.values())[:20]:
        print(f"  {error}")
    print(f"features: {folder}\nwhich window is where: {folder / WINDOWS}\nwhat could not be read: {folder / FAILURES}")
    if done.failed and not skip_missing:
        raise typer.Exit(1)

"""`vmae-lab features`: features of sliding windows over the videos of a list, one file per video."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vmae_lab.cli.data import FRAMES_NAMED, FollowLinks, FramePattern, Labelled, Listed, Root, named_after_list, open_list
from vmae_lab.cli.parameters import Device
from vmae_lab.cli.predict import FramesOption, PositionsOption, SideOption, checked_side
from vmae_lab.utils.counts import counted

commands = typer.Typer()


@commands.command(
    epilog="\b\nExample:\n  vmae-lab features path/to/list.csv --root path/to/videos --model path/to/model \\\n"
    "    --window-stride 4"
)
def features(
    listed: Listed,
    model: Annotated[str, typer.Option(help="A checkpoint: a folder, a file or a name on the Hugging Face hub.")],
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    frames: FramesOption = None,
    side: SideOption = None,
    positions: PositionsOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: <list>.features here.")] = None,
    stride: Annotated[
        int,
        typer.Option(  # --stride is the old name; in other commands it is the distance between the frames of a clip
            "--window-stride", "--stride", min=1, help="Frames between windows: 4 for THUMOS14, 16 for FineAction."
        ),
    ] = 4,
    form: Annotated[Literal["npy", "npz", "parquet"], typer.Option("--format", help="Format of the files.")] = "npy",
    frame: Annotated[
        Literal["squash", "centre"], typer.Option(help="Squash the whole frame into the clip, or crop its center.")
    ] = "squash",
    scale_only: Annotated[
        bool,
        typer.Option(
            "--scale-only",
            help="Divide pixels by 255 only, as for the published features.",
        ),
    ] = False,
    layer: Annotated[int | None, typer.Option(min=1, help="Block whose tokens are used, from 1. Default: the last.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Write all tokens of each window instead of their mean.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Windows per forward pass.")] = 8,
    chunk: Annotated[int, typer.Option(min=1, help="Frames of a video in memory at a time.")] = 1024,
    frame_pattern: FramePattern = FRAMES_NAMED,
    device: Device = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Exit with status 0 even if some videos cannot be read.")
    ] = False,
) -> None:
    """Extract features of sliding windows over videos, one file per video.

    A file has a float32 array of shape (windows, width), or (windows, tokens, width) with --tokens. After an interruption, the
    same command resumes. The exit status is 1 if a video cannot be read.
    """
    from vmae_lab.data.decoding import VideoSettings
    from vmae_lab.data.video_dataset import clips_of
    from vmae_lab.evaluation.features import FAILURES, WINDOWS, FeatureSettings, extract_features, open_encoder
    from vmae_lab.utils.processes import chosen_device

    settings = FeatureSettings(stride=stride, frame=frame, scale_only=scale_only, format=form)
    videos = open_list(listed, root, labelled, follow_links)
    encoder, norm = open_encoder(model, frames, checked_side(side), chosen_device(device), positions)
    clips = clips_of({"features": (videos, frame_pattern)}, VideoSettings(follow_links=follow_links))
    folder = out or named_after_list(listed, root, "features")
    done = extract_features(encoder, clips, folder, settings, norm, batch, chunk, layer=layer, tokens=tokens)
    clips.decoders.close()
    print(f"{len(clips) - len(done.failed)} of {counted(len(clips), 'video')}, {counted(len(done.windows), 'window')}")
    for error in list(done.failed.values())[:20]:
        print(f"  {error}")
    print(f"features: {folder}\nwindows: {folder / WINDOWS}\nunreadable videos: {folder / FAILURES}")
    if done.failed and not skip_missing:
        raise typer.Exit(1)

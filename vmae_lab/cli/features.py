"""`vmae-lab features …`: the features of windows along the videos of a list, a file a video."""

import argparse
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from vmae_lab.cli.data import list_options, named_after_list
from vmae_lab.data.listed import clips_of
from vmae_lab.data.lists import read_list
from vmae_lab.data.video import VideoSettings
from vmae_lab.data.video.screen import FRAMES
from vmae_lab.evaluation.features import FAILURES, WINDOWS, FeatureSettings, Format, extract_features
from vmae_lab.models.checkpoints import open_checkpoint
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.videomae import VideoMAE


def add_command(commands: argparse._SubParsersAction) -> None:
    """Put `features` among the commands of the command line."""
    words = "write the features of windows along videos, a file a video"
    more = ". Goes on where it was interrupted; exit status 1 where a video could not be read."
    command = commands.add_parser("features", help=words, description=words.capitalize() + more)
    list_options(command)
    command.add_argument("--model", required=True, help="folder, file or the hub's name of a model")
    for name in ("frames", "side"):
        command.add_argument(f"--{name}", type=int, help=f"{name} of a clip, where not the model's own")
    command.add_argument("--out", type=Path, help="folder for the results (default: <list>.features in the current folder)")
    fields = FeatureSettings.model_fields
    command.add_argument("--stride", type=int, default=fields["stride"].default, help=fields["stride"].description)
    command.add_argument("--format", choices=get_args(Format), default=fields["format"].default)
    command.add_argument(
        "--frame", choices=("squash", "centre"), default=fields["frame"].default, help=fields["frame"].description
    )
    command.add_argument("--scale-only", action="store_true", help=fields["scale_only"].description)
    command.add_argument("--batch", type=int, default=8, help="windows that go through the model at a time")
    command.add_argument("--chunk", type=int, default=1024, help="frames of a video that are held at a time")
    command.add_argument("--frame-pattern", default=FRAMES, help="names in folders of frames")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--skip-missing", action="store_true", help="exit with status 0 though videos could not be read")


def run(options: argparse.Namespace) -> int:
    """Extract them; returns the exit status."""
    settings = FeatureSettings(stride=options.stride, frame=options.frame, scale_only=options.scale_only, format=options.format)
    encoder, norm = _encoder(options)
    videos = read_list(options.list, options.root, options.labelled)
    clips = clips_of({"features": (videos, options.frame_pattern)}, VideoSettings(follow_links=options.follow_links))
    folder = options.out or named_after_list(options, "features")
    done = extract_features(encoder, clips, folder, settings, norm, options.batch, options.chunk)
    clips.decoders.close()
    print(f"{len(clips) - len(done.failed)} of {len(clips)} videos, {len(done.windows)} windows")
    for error in list(done.failed.values())[:20]:
        print(f"  {error}")
    print(f"features: {folder}\nwhich window is where: {folder / WINDOWS}\nwhat could not be read: {folder / FAILURES}")
    return int(bool(done.failed) and not options.skip_missing)


def _encoder(options: argparse.Namespace) -> tuple[nn.Module, nn.Module | None]:
    """The model's encoder, and the norm of its mean token, where not (after pre-training) the tokens' own. Raises
    CheckpointError."""
    shape = {"frames": options.frames, "side": options.side}
    if open_checkpoint(options.model).config.model == "VideoMAE":
        return VideoMAE.from_pretrained(options.model, **shape).encoder.to(options.device), None
    model = VideoClassifier.from_pretrained(options.model, **shape).to(options.device)
    return model.encoder, model.head.fc_norm

"""`vmae-lab export`: a classifier as one file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vmae_lab.cli.predict import FramesOption, Model, PositionsOption, SideOption, checked_side

commands = typer.Typer()


@commands.command(
    epilog="\b\nExamples:\n  vmae-lab export runs/finetune-0123456789ab --to onnx\n"
    "  vmae-lab export MCG-NJU/videomae-base-finetuned-kinetics --to torch_export --out videomae.pt2"
)
def export(
    model: Model,
    to: Annotated[
        Literal["onnx", "torch_export"],
        typer.Option(help="onnx: for ONNX Runtime; needs vmae-lab[export]. torch_export: for torch.export.load."),
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file. Default: model.onnx or model.pt2 here.")] = None,
    frames: FramesOption = None,
    side: SideOption = None,
    positions: PositionsOption = None,
) -> None:
    """Write a classifier to a file that runs without this package, and check the file.

    Its input `video` is uint8 of shape (batch, 3, frames, height, width), with any batch size; it normalizes the pixels itself.
    Its output `logits` is float32 of shape (batch, classes). The logits must equal those of the model to 1e-4.
    """
    from vmae_lab.evaluation.predict import open_classifier
    from vmae_lab.models.export import SUFFIXES, export_classifier

    opened = open_classifier(model, frames, checked_side(side), positions)
    path = out or Path(f"model{SUFFIXES[to]}")
    difference = export_classifier(opened, path, to)
    clip = opened.clip
    print(
        f"video: uint8 (batch, {clip.channels}, {clip.frames}, {clip.height}, {clip.width}); logits: float32 (batch, "
        f"{opened.classes})\nlargest difference of logits from the model: {difference:.1e}\nexported: {path}"
    )

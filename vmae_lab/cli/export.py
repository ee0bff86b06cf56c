"""`vmae-lab export`: a classifier as one file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vmae_lab.cli.predict import Model

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
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip. Default: those of the model.")] = None,
    side: Annotated[
        int | None, typer.Option(min=1, help="Height and width of a clip, pixels. Default: those of the model.")
    ] = None,
) -> None:
    """Write a classifier to a file that runs without this package, and check the file.

    Its input `video` is uint8 of shape (batch, 3, frames, height, width), with any batch size; it normalizes the pixels itself.
    Its output `logits` is float32 of shape (batch, classes). The logits must equal those of the model to 1e-4.
    """
    from vmae_lab.evaluation.predict import open_classifier
    from vmae_lab.models.export import SUFFIXES, export_classifier

    opened = open_classifier(model, frames, side)
    path = out or Path(f"model{SUFFIXES[to]}")
    difference = export_classifier(opened, path, to)
    clip = opened.clip
    print(
        f"video: uint8 (batch, {clip.channels}, {clip.frames}, {clip.side}, {clip.side}); logits: float32 (batch, "
        f"{opened.classes})\nlargest difference of logits from the model: {difference:.1e}\nexported: {path}"
    )

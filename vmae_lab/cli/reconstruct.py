"""`vmae-lab reconstruct`: reconstruct a masked video, and show it as a loop and as a strip of frames."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from vmae_lab.cli.parameters import Device, output_file
from vmae_lab.cli.predict import FramesOption, Model, PositionsOption, SideOption, checked_side
from vmae_lab.utils.counts import counted

if TYPE_CHECKING:
    import numpy as np

commands = typer.Typer()
# With a normalized target: name in the result of `rebuilt` -> label in the pictures.
LABELS = {
    "decoder reconstructs": "decoded + true mean",
    "patch means": "true patch means",
    "reconstruction": "+ true mean, contrast",
    "prediction": "prediction alone",
}


@commands.command(
    epilog="\b\nExamples:\n  vmae-lab reconstruct runs/pretrain-0123456789ab video.mp4\n"
    "  vmae-lab reconstruct MCG-NJU/videomae-base video.mp4 --mask tube --ratio 0.75 --out loop.mp4\n"
    "  vmae-lab reconstruct path/to/model video.mp4 --decoder-mask running_cell --decoder-ratio 0.5"
)
def reconstruct(
    model: Model,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file. Its middle clip is shown.")],
    mask: Annotated[
        str, typer.Option(metavar="KIND", help="Mask of the encoder: tube, running_cell, frame, random, or your own.")
    ] = "tube",
    ratio: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Fraction of the patches that the encoder does not see.")
    ] = 0.9,
    decoder_mask: Annotated[
        str, typer.Option(metavar="KIND", help="Mask of the decoder. none: it reconstructs all hidden patches.")
    ] = "none",
    decoder_ratio: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Fraction of the patches that the decoder mask leaves out.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the masks.")] = 0,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="The clip takes every N-th frame. Default: as in training, or 4 if that is unknown."),
    ] = None,
    frames: FramesOption = None,
    side: SideOption = None,
    positions: PositionsOption = None,
    out: Annotated[
        Path,
        typer.Option(
            callback=output_file(".gif", ".mp4"),
            help="File of the loop, .gif or .mp4. The strip is written next to it as .png.",
        ),
    ] = Path("reconstruction.gif"),
    device: Device = None,
) -> None:
    """Mask a video, reconstruct it, and write the original, masked and reconstructed frames as a loop and as a strip.

    Most models predict each patch without its mean and contrast. The prediction is then shown twice: alone, as a pattern
    around gray, and with the mean and contrast of the true patch. The true means alone already look similar to the video, so
    they are shown for comparison.
    """
    from vmae_lab.evaluation.multi_view import ViewSettings
    from vmae_lab.evaluation.predict import PredictionError, preprocess
    from vmae_lab.evaluation.reconstruction import batch_errors
    from vmae_lab.lab.plots.examples import draw_picture_masks, rebuilt
    from vmae_lab.masking import MaskKind, MaskSettings
    from vmae_lab.models.videomae import VideoMAE
    from vmae_lab.utils.atomic_io import make_folder
    from vmae_lab.utils.processes import chosen_device

    kinds = get_args(MaskKind)
    for option, kind, known in (("--mask", mask, kinds), ("--decoder-mask", decoder_mask, (*kinds, "none"))):
        if kind not in known:
            raise typer.BadParameter(f"there is no mask {kind!r}; use one of {', '.join(known)}", param_hint=option)
    ratios = {"encoder_ratio": ratio, "decoder_ratio": 0 if decoder_mask == "none" else decoder_ratio}
    masks = MaskSettings.model_validate({"encoder": mask, "decoder": decoder_mask, **ratios})
    make_folder(out.parent)  # if it cannot be written, fail before the work
    used = chosen_device(device)
    opened = VideoMAE.from_pretrained(model, frames=frames, side=checked_side(side), positions=positions).to(used)
    try:
        encoder_mask, decoded_mask = draw_picture_masks(masks, opened.clip.grid, seed)
    except ValueError as error:
        raise PredictionError(f"the model's clips do not allow these masks: {error}") from error
    clip = preprocess(video, opened, stride=stride, views=ViewSettings(clips=1, crops=1)).to(used)
    errors, count = batch_errors(opened, clip, encoder_mask, decoded_mask)
    print(
        f"{opened.clip.tokens} patches: the encoder sees {int((~encoder_mask).sum())}, the decoder reconstructs "
        f"{int((~decoded_mask).sum())}\nsquared error of {counted(count, 'hidden patch')}: "
        f"{errors['reconstruction']:.4f}; of predicting their true means: {errors['cube_mean']:.4f}"
    )
    pictures = rebuilt(opened, clip, encoder_mask, None if decoder_mask == "none" else decoded_mask, standardized=True)
    if opened.normalise_target:
        pictures = {LABELS.get(name, name): shown for name, shown in pictures.items()}
    _write(pictures, out, opened.clip.tubelet)


def _write(pictures: "Mapping[str, np.ndarray]", out: Path, tubelet: int) -> None:
    """Write the loop, and next to it the strip of one frame per tubelet. `pictures`: label -> uint8 `(T, H, W, 3)`."""
    from vmae_lab.lab.plots.clip_pictures import looping_gif, playing_mp4, strips
    from vmae_lab.lab.plots.style import use_style
    from vmae_lab.utils.atomic_io import atomic_write

    with atomic_write(out) as temporary:
        temporary.write_bytes(playing_mp4(pictures) if out.suffix == ".mp4" else looping_gif(pictures))
    use_style()
    titles = [f"frame {number}" for number in range(0, len(pictures["original"]), tubelet)]
    figure = strips({label: frames[::tubelet] for label, frames in pictures.items()}, titles)
    strip = out.with_suffix(".png")
    with atomic_write(strip) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    print(f"loop: {out}\nstrip: {strip}")

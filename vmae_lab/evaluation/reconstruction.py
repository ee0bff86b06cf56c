"""Reconstruction error on held-out clips. It does not measure the quality of features: easy masks give low errors."""

import torch

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import BATCH, batches_of, evaluated_clips
from vmae_lab.evaluation.inference import DEFAULT, Inference
from vmae_lab.masking import MaskSettings, draw_masks, loss_positions
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE, patch_statistics, reconstruction_loss
from vmae_lab.utils.precision import Precision, autocast
from vmae_lab.utils.seeding import torch_generator


@torch.no_grad()
def reconstruction_errors(
    model: VideoMAE, clips: Clips, settings: ModelSettings, masks: MaskSettings, stride: int, inference: Inference = DEFAULT
) -> dict[str, float]:
    """Return the loss on held-out clips with the arm's own masks, and the loss of a baseline (`cube_mean`).

    The baseline predicts the true mean of each patch. Models do not know it, so the baseline is optimistic. Both losses use the
    target that the arm was trained with. Errors with different masks are not comparable. Raises MissingVideos.
    """
    device = next(model.parameters()).device
    sums = {"reconstruction": 0.0, "cube_mean": 0.0}
    tokens = 0
    all_rows = range(len(clips))
    batches = evaluated_clips(clips, all_rows, settings.frames, stride, settings.side, BATCH, load=inference.load)
    for rows, video in zip(batches_of(all_rows, BATCH), batches, strict=True):
        video = video.to(device)
        generators = (torch_generator(0, f"held-out {side} mask", rows[0]) for side in ("encoder", "decoder"))
        encoder_mask, decoder_mask = draw_masks(masks, settings.clip.grid, len(rows), *generators)
        errors, count = batch_errors(model, video, encoder_mask, decoder_mask, inference.precision)
        for name, error in errors.items():
            sums[name] += error * count
        tokens += count
    return {name: value / tokens for name, value in sums.items()}


@torch.no_grad()
def batch_errors(
    model: VideoMAE, video: torch.Tensor, encoder_mask: torch.Tensor, decoder_mask: torch.Tensor,
    precision: Precision = "auto",
) -> tuple[dict[str, float], int]:  # fmt: skip
    """Return both errors of `reconstruction_errors` for one batch, and the number of patches that they average over."""
    with autocast(precision, video.device):
        prediction, decoded = model(video, encoder_mask, decoder_mask)
    target = model.target(video, decoded)
    counted = loss_positions(encoder_mask, decoded.cpu(), "invisible").to(video.device)
    means = _patch_means(target, model.clip.channels)
    errors = {
        "reconstruction": reconstruction_loss(prediction.float(), target, counted).item(),
        "cube_mean": reconstruction_loss(means, target, counted).item(),
    }
    return errors, int(counted.sum())


def _patch_means(target: torch.Tensor, channels: int) -> torch.Tensor:
    """Replace the pixels of each patch by its mean color (zero if the target is normalized): `(B, M, v*C)` -> the same."""
    pixels = target.unflatten(-1, (-1, channels))
    return patch_statistics(pixels)[0].expand_as(pixels).flatten(-2)

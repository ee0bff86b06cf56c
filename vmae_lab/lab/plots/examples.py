"""The clips that figures show, their frames, and their reconstructions by a pre-trained model."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import MissingVideos, batches_of, middle_clips, readable
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.clip_pictures import HIDDEN
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages.inputs import split_clips
from vmae_lab.masking import MaskSettings, draw_masks
from vmae_lab.models.sizes import ClipShape
from vmae_lab.models.videomae import VideoMAE, patch_statistics
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.seeding import numpy_generator, torch_generator
from vmae_lab.utils.shapes import Grid, Side

CONTRAST = 0.15  # standard deviation of a patch, in parts of white, when the model's own prediction is drawn


def example_clips(plan: Plan) -> Clips:
    """Return the clips that figures may show: those of the evaluated split, or those to pre-train on without labels."""
    recipe = plan.recipe
    split, sources = "pretrain", recipe.data.pretrain_sources
    if recipe.data.labelled:
        split, sources = recipe.evaluate.split, recipe.evaluate.sources
    return split_clips(recipe.data, split, sources, recipe.compute)


def random_clips(plan: Plan, count: int) -> list[int]:
    """Draw rows of readable example clips with the recipe's first seed. Raises MissingVideos if none can be read."""
    clips, found = example_clips(plan), list[int]()
    missing: MissingVideos | None = None
    order = numpy_generator(plan.recipe.seeds[0], "clips to look at").permutation(len(clips)).tolist()
    for rows in batches_of(order, count):
        good, failed = readable(clips, rows, *window(plan.recipe))
        found, missing = found + good, failed or missing
        if len(found) >= count:
            break
    if missing and not found:
        raise MissingVideos(missing.failed, len(clips))
    return found[:count]


def window(recipe: Recipe) -> tuple[int, int, Side]:
    """Return frames, stride and side of an evaluated clip."""
    return recipe.model.frames, recipe.data.stride, recipe.model.side


def names_of(plan: Plan, clips: Clips, rows: Sequence[int]) -> list[str]:
    """Return the captions of clips: their classes, or their sources if there are no labels."""
    if plan.recipe.data.labelled:
        names = plan.recipe.data.class_names
        return [names[clips.labels[row]] for row in rows]
    return [str(clips.sources[row]) for row in rows]


def picture_clip(plan: Plan, clip: int) -> torch.Tensor:
    """Return the middle window of one example clip: uint8 `(1, C, T, H, W)`. Raises MissingVideos.

    If the clip is unreadable and the recipe skips unreadable videos, it is the next readable one.
    """
    clips, shape = example_clips(plan), window(plan.recipe)
    if plan.recipe.evaluate.missing == "skip":
        clip = next((row for row in range(clip, len(clips)) if readable(clips, [row], *shape)[0]), clip)
    return middle_clips(clips, [clip], *shape)


def clip_frames(plan: Plan, rows: Sequence[int], clips: Clips | None = None) -> list[np.ndarray]:
    """Return evaluated windows of example clips, or of `clips`, one frame per time step: uint8 `(T', H, W, 3)` each."""
    video = middle_clips(example_clips(plan) if clips is None else clips, rows, *window(plan.recipe))
    return list(video[:, :, :: plan.recipe.model.tubelet].permute(0, 2, 3, 4, 1).numpy())


def trained_model(plan: Plan, store: RunStore, arm: str) -> VideoMAE:
    """Load the pre-trained model of an arm at the first seed on the device, for evaluation. Raises CheckpointError."""
    return VideoMAE.from_pretrained(store.folder(plan.first(arm).encoder)).to(process_state().device)


def reconstructions(plan: Plan, store: RunStore, arm: str, clip: int) -> dict[str, np.ndarray]:
    """Return `rebuilt` of one example clip with the masks of all figures, one frame per time step."""
    encoder_mask, _ = masks_of_pictures(plan.first(arm).recipe)
    frames = rebuilt(trained_model(plan, store, arm), picture_clip(plan, clip), encoder_mask)
    return {name: strip[:: plan.recipe.model.tubelet] for name, strip in frames.items()}


@torch.no_grad()
def rebuilt(
    model: VideoMAE, video: torch.Tensor, encoder_mask: torch.Tensor, decoder_mask: torch.Tensor | None = None,
    standardized: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return a clip as the model sees and reconstructs it: name -> uint8 `(T, H, W, 3)`.

    These are: original, what the encoder sees, what the decoder reconstructs (with a decoder mask), patch means (with a
    normalized target), and the reconstruction of all masked patches. A normalized target does not contain the mean and the
    deviation of a patch, so both are taken from the true patch. The patch means show what the true means alone give.
    `standardized` adds the normalized prediction itself, as a pattern around gray.

    video: uint8 `(1, C, T, H, W)`; masks: bool `(1, N)`, True = masked.
    """
    video = video.to(next(model.parameters()).device)
    original = video[0].permute(1, 2, 3, 0).cpu().numpy()
    hidden, filled, means, predicted = _predicted(model, video, encoder_mask, None)
    frames = {"original": original, "encoder sees": _paste(original, np.broadcast_to(HIDDEN, filled.shape), hidden, model.clip)}
    if decoder_mask is not None:
        decoded, pixels, _, _ = _predicted(model, video, encoder_mask, decoder_mask)
        blank = np.broadcast_to(np.round(255 * np.array(HIDDEN)), original.shape).astype(np.uint8)
        frames["decoder reconstructs"] = _paste(blank, pixels, decoded, model.clip)
    if model.normalise_target:
        frames["patch means"] = _paste(original, means, hidden, model.clip)
    frames["reconstruction"] = _paste(original, filled, hidden, model.clip)
    if standardized and model.normalise_target:
        frames["prediction"] = _paste(original, 0.5 + CONTRAST * predicted, hidden, model.clip)
    return frames


def _predicted(
    model: VideoMAE, video: torch.Tensor, encoder_mask: torch.Tensor, decoder_mask: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the positions of the decoded patches, int `(M,)`; their predicted pixels, their true means, and the prediction
    itself (standardized with a normalized target), `(M, t*p*p, 3)` each.
    """
    prediction, decoded = model(video, encoder_mask, decoder_mask)
    raw = model.pixels_at(video, decoded)
    mean, deviation = patch_statistics(raw)
    predicted = prediction.reshape(raw.shape)
    filled = predicted * (deviation + model.target_eps) + mean if model.normalise_target else predicted
    positions, *pixels = (values[0].cpu().numpy() for values in (decoded, filled, mean.expand_as(raw), predicted))
    return positions, pixels[0], pixels[1], pixels[2]


def masks_of_pictures(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the encoder and decoder mask of all figures, bool `(1, N)`: always the same for a recipe."""
    return draw_picture_masks(recipe.mask, recipe.model.clip.grid)


def draw_picture_masks(masks: MaskSettings, grid: Grid, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the encoder and decoder mask of one clip: bool `(1, N)` each. Raises ValueError if the grid does not allow them."""
    generators = (torch_generator(seed, f"picture {part} mask") for part in ("encoder", "decoder"))
    return draw_masks(masks, grid, 1, *generators)


def _paste(frames: np.ndarray, values: np.ndarray, positions: np.ndarray, clip: ClipShape) -> np.ndarray:
    """Replace patches of uint8 frames `(T, H, W, 3)` at positions `(M,)` by values `(M, t*p*p, 3)` in [0, 1]."""
    (time, height, width), patch = clip.grid, clip.patch
    layout = "(t k) (h p) (w q) c -> (t h w) (k p q) c"
    tokens = rearrange(frames, layout, k=clip.tubelet, p=patch, q=patch).copy()
    tokens[positions] = (255 * values.clip(0, 1)).round()
    back = "(t h w) (k p q) c -> (t k) (h p) (w q) c"
    return rearrange(tokens, back, t=time, h=height, w=width, k=clip.tubelet, p=patch, q=patch)

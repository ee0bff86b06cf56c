"""The analytic cost equals the paper's figures, counters on the official code, and PyTorch's counts of our model."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.flops import TokenCounts, classify_cost, pretrain_cost, saved_bytes, training_macs
from vmae_lab.models.sizes import SIZES, ClipShape, Size
from vmae_lab.models.videomae import VideoMAE, reconstruction_loss

# 16x224x224, tube mask 0.9, decoder depth 4. Source: VideoMAE V2, tables 1 and 2.
PAPER = [("base", 160, 1408, 35.48), ("base", 160, 1176, 31.63), ("base", 160, 784, 25.87), ("base", 160, 392, 21.06)]


@pytest.mark.parametrize(("size", "visible", "decoded", "giga"), PAPER)
def test_cost_equals_table_1_of_the_paper(size, visible, decoded, giga):
    assert round(pretrain_cost(SIZES[size], ClipShape(), visible, decoded).giga, 2) == giga


@pytest.mark.parametrize(("decoded", "giga_macs"), [(1840, 263.96), (1024, 241.61)])
def test_cost_equals_table_2_of_the_paper(decoded, giga_macs):
    cost = pretrain_cost(SIZES["giant"], ClipShape(patch=14), 208, decoded)
    assert round(cost.macs / 1e9, 2) == giga_macs


def test_cost_equals_all_reference_values(parity):
    facts = json.loads((parity / "flops_params.json").read_text())
    rows = 0
    for name, entry in facts["pretrain"].items():
        clip = ClipShape(patch=SIZES[name].patch)
        assert entry["tokens"] == clip.tokens
        for ratio, row in entry["flops"].items():
            cost = pretrain_cost(SIZES[name], clip, entry["visible_tokens"], row["decoded_tokens"])
            assert cost.macs == round(row["torch_MACs_G"] * 1e9), (name, ratio)
            assert cost.fvcore == round(row["fvcore_G"] * 1e9), (name, ratio)
            rows += 1
    for name, row in facts["finetune"].items():
        cost = classify_cost(SIZES[name], ClipShape(patch=SIZES[name].patch), 400)
        assert cost.macs == round(row["torch_MACs_G"] * 1e9), name
        assert cost.fvcore == round(row["fvcore_G"] * 1e9), name
        rows += 1
    assert rows == 25


def test_parameter_counts_equal_the_reference(parity):
    """Our models also have k biases (one width per block), which the official layout does not have."""
    facts = json.loads((parity / "flops_params.json").read_text())["pretrain"]
    for name, entry in facts.items():
        size = SIZES[name]
        with torch.device("meta"):
            model = VideoMAE(size, ClipShape(patch=size.patch))
        k_biases = size.width * size.depth + size.decoder_width * size.decoder_depth
        assert sum(p.numel() for p in model.parameters()) - k_biases == entry["params"]["total"], name


BATCH = 2


@dataclass(frozen=True)
class Step:
    """Forward pass and loss of a model on random pixels, and the arguments of the analytic counts."""

    model: VideoMAE
    size: Size
    clip: ClipShape
    video: torch.Tensor
    encoder_mask: torch.Tensor
    decoder_mask: torch.Tensor

    @property
    def counts(self) -> tuple[Size, ClipShape, int, int]:
        return self.size, self.clip, int((~self.encoder_mask[0]).sum()), int((~self.decoder_mask[0]).sum())

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(self.video, self.encoder_mask, self.decoder_mask)

    def loss(self) -> torch.Tensor:
        prediction, decoded = self.forward()
        counted = loss_positions(self.encoder_mask, visible_index(self.decoder_mask))
        return reconstruction_loss(prediction, self.model.target(self.video, decoded), counted)


@pytest.fixture(
    scope="module",
    params=[
        ("tiny", ClipShape(8, 24, 2, 4), 0.0, None),
        ("tiny", ClipShape(8, 24, 2, 4), 0.5, 0.1),
        ("small", ClipShape(8, 64, 2, 16), 0.0, None),
        ("small", ClipShape(8, 64, 2, 16), 0.5, None),
    ],
    ids=lambda p: f"{p[0]}-{'cell' if p[2] else 'none'}{'-layer scale' if p[3] else ''}",
)
def step(request) -> Step:
    name, clip, ratio, layer_scale = request.param
    masks = MaskSettings(encoder_ratio=0.75, decoder="running_cell" if ratio else "none", decoder_ratio=ratio)
    drawn = draw_masks(masks, clip.grid, BATCH, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    video = torch.randint(0, 256, (BATCH, 3, clip.frames, clip.side, clip.side), dtype=torch.uint8)
    size = replace(SIZES[name], layer_scale=layer_scale)
    return Step(VideoMAE(size, clip), size, clip, video, *drawn)


def test_pretraining_macs_equal_pytorchs_count(step):
    """Exactly, since arms are compared by these counts."""
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        step.forward()
    # The counter counts a multiplication and an addition as two.
    assert forward.get_total_flops() == 2 * BATCH * pretrain_cost(*step.counts, embed_visible=True).macs
    with FlopCounterMode(display=False) as both:
        step.loss().backward()
    assert both.get_total_flops() == 2 * BATCH * training_macs(*step.counts)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_classifier_macs_equal_pytorchs_count(name):
    clip = ClipShape(8, 64, 2, 16)
    model = VideoClassifier(SIZES[name], clip, classes=7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(BATCH, 3, 8, 64, 64, dtype=torch.uint8))
    assert counter.get_total_flops() == 2 * BATCH * classify_cost(SIZES[name], clip, 7).macs


def norm_elements(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Number of elements of all LayerNorm outputs in a forward pass."""
    seen = []
    hooks = [
        part.register_forward_hook(lambda _, given, out: seen.append(out.numel()))
        for part in model.modules()
        if isinstance(part, torch.nn.LayerNorm)
    ]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(seen)


def test_fvcore_adds_five_per_layer_norm_element(step):
    """Counted in the models. The decoder's last LayerNorm is only applied to mask tokens."""
    cost = pretrain_cost(*step.counts)
    assert cost.fvcore - cost.macs == 5 * norm_elements(step.model, step.video, step.encoder_mask, step.decoder_mask) / BATCH
    cost = classify_cost(step.size, step.clip, 7)
    assert cost.fvcore - cost.macs == 5 * norm_elements(VideoClassifier(step.size, step.clip, 7), step.video) / BATCH


def test_token_counts_by_hand():
    """4 x 6 x 6 tokens: 27 of 36 positions are masked at all 4 time steps. Running cell masking decodes each position twice."""
    masks = {"encoder_ratio": 0.75, "decoder_ratio": 0.5}
    clip = ClipShape(8, 24, 2, 4)
    assert TokenCounts.of(MaskSettings(**masks), clip) == TokenCounts(144, 36, 72, 54.0)
    assert TokenCounts.of(MaskSettings(**masks, loss_on="all_decoded"), clip) == TokenCounts(144, 36, 72, 72.0)
    assert TokenCounts.of(MaskSettings(**masks, prune=True), clip) == TokenCounts(144, 36, 54, 54.0)
    assert TokenCounts.of(MaskSettings(encoder_ratio=0.75, decoder="none", decoder_ratio=0), clip).decoded == 108


class WeightCopies(TorchDispatchMode):
    """Records the copies of a model's weights in another type that are made while it is active."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.weights = {storage(p) for p in model.parameters()}
        self.copies: list[torch.Tensor] = []  # kept, so that no other tensor can reuse their memory

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        if function is torch.ops.aten._to_copy.default and storage(arguments[0]) in self.weights:
            self.copies.append(made)
        return made


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
def test_saved_bytes_equal_what_autograd_saves(step, half):
    """Each storage that autograd saves counts once; weights and autocast's copies of them do not count."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(storage(tensor), tensor)
        return tensor

    copies = WeightCopies(step.model)
    autocast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast, copies:
        loss = step.loss()
    assert loss.requires_grad
    of_weights = copies.weights | {storage(copy) for copy in copies.copies}
    assert bool(copies.copies) == half
    others = [tensor for pointer, tensor in kept.items() if pointer not in of_weights]
    divisor = 8  # number of tokens in the loss, int64, once per batch
    assert sum(tensor.untyped_storage().nbytes() for tensor in others) == BATCH * saved_bytes(*step.counts, half) + divisor

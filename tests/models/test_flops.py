"""The analytic cost against the figures the paper reports and against counters run over the official code."""

import json

import pytest

from vmae_lab.models.flops import classify_cost, pretrain_cost
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE

# 16x224x224, encoder tube .9, decoder depth 4. Sources: VideoMAE V2, tables 1 and 2.
PAPER = [("base", 160, 1408, 35.48), ("base", 160, 1176, 31.63), ("base", 160, 784, 25.87), ("base", 160, 392, 21.06)]


@pytest.mark.parametrize(("size", "visible", "decoded", "giga"), PAPER)
def test_the_papers_table_1(size, visible, decoded, giga):
    assert round(pretrain_cost(SIZES[size], ClipShape(), visible, decoded).giga, 2) == giga


@pytest.mark.parametrize(("decoded", "giga_macs"), [(1840, 263.96), (1024, 241.61)])
def test_the_papers_table_2_for_the_giant(decoded, giga_macs):
    cost = pretrain_cost(SIZES["giant"], ClipShape(patch=14), 208, decoded)
    assert round(cost.macs / 1e9, 2) == giga_macs


def test_every_reference_row(parity):
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


def test_parameters_of_every_size(parity):
    """Ours has a k bias (one width a block) that the official layout leaves out."""
    import torch

    facts = json.loads((parity / "flops_params.json").read_text())["pretrain"]
    for name, entry in facts.items():
        size = SIZES[name]
        with torch.device("meta"):
            model = VideoMAE(size, ClipShape(patch=size.patch))
        k_biases = size.width * size.depth + size.decoder_width * size.decoder_depth
        assert sum(p.numel() for p in model.parameters()) - k_biases == entry["params"]["total"], name

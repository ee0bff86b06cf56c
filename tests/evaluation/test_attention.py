"""Attention rollout and relevance for a class, compared with attention computed by hand."""

import pytest
import torch
from random_weights import randomized

from vmae_lab.evaluation.attention import attention_rollout, class_relevance
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.vit import VideoEncoder, patchify
from vmae_lab.utils.seeding import torch_generator

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)


@pytest.fixture
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(MODEL.dimensions, MODEL.clip)


def test_shares_equal_attention_multiplied_by_hand(encoder):
    video = torch.randn(2, 3, 4, 16, 16, generator=torch_generator(0, "clip"))
    for block in encoder.trunk.blocks:
        block.attn.qkv.weight.data *= 8  # far from uniform
    tokens = encoder.embed(patchify(video, MODEL.clip)) + encoder.positions
    rolled = torch.eye(MODEL.clip.tokens).expand(2, -1, -1)
    for block in encoder.trunk.blocks:
        attn = block.attn
        q, k, _ = attn.qkv(block.norm1(tokens)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        rolled = (0.5 * weights + 0.5 * torch.eye(MODEL.clip.tokens)) @ rolled
        tokens = block(tokens)
    shares = attention_rollout(encoder, video)
    assert shares.shape == (2, MODEL.clip.tokens)
    torch.testing.assert_close(shares, rolled.mean(1).detach())
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert shares.std() > 0.1 / MODEL.clip.tokens, "otherwise the test would prove nothing"


def test_uniform_attention_gives_equal_shares(encoder):
    for block in encoder.trunk.blocks:
        block.attn.qkv.weight.data.zero_()
        block.attn.qkv.bias.data.zero_()
    shares = attention_rollout(encoder, torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8))
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / MODEL.clip.tokens))


@pytest.mark.parametrize("readout", ["mean", "flat", "attentive"])
def test_class_relevance_equals_gradient_weighted_rollout_by_hand(readout):
    """With whole matrices, as in the paper: R <- R + A' R from the identity, and attention computed without timm."""
    torch.manual_seed(0)
    model = randomized(VideoClassifier(MODEL.dimensions, MODEL.clip, 3, readout))
    video = torch.randn(2, 3, 4, 16, 16, generator=torch_generator(0, "clip"))
    labels = torch.tensor([2, 0])
    encoder, maps = model.encoder, []
    tokens = encoder.embed(patchify(video, MODEL.clip)) + encoder.positions
    for block in encoder.trunk.blocks:
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(tokens)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        maps.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))
        tokens = tokens + attn.proj((maps[-1] @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.norm2(tokens))
    logits = model.head(tokens)
    torch.testing.assert_close(logits, model(video))
    gradients = torch.autograd.grad(logits[torch.arange(2), labels].sum(), maps)
    rolled = torch.eye(MODEL.clip.tokens).expand(2, -1, -1)
    for weights, gradient in zip(maps, gradients, strict=True):
        rolled = rolled + (weights * gradient).clamp(min=0).mean(1) @ rolled
    expected = (rolled - torch.eye(MODEL.clip.tokens)).mean(1).detach()
    relevance = class_relevance(model, video, labels)
    torch.testing.assert_close(relevance, expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(relevance.sum(1), torch.ones(2))
    assert (relevance >= 0).all()
    assert not torch.allclose(relevance, class_relevance(model, video, labels.flip(0))), "it depends on the class"


def test_relevance_without_any_evidence_is_uniform():
    model = VideoClassifier(MODEL.dimensions, MODEL.clip, 2)
    torch.nn.init.zeros_(model.head.head.weight)
    relevance = class_relevance(model, torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8), torch.tensor([1]))
    torch.testing.assert_close(relevance, torch.full_like(relevance, 1 / MODEL.clip.tokens))

"""VideoMAE V2's pre-training model in the usual style of reference code, only for comparison in benchmarks.

All patches are embedded before masking, tokens are selected by boolean masks, attention computes its score matrix and a
softmax, the bias of q, k and v is concatenated in each call, targets are computed for all patches, and the loss is fetched in
each step. The weights are those of our model.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import IMAGENET_MEAN, IMAGENET_STD, NORM_EPS, sincos_positions


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        q, k, v = rearrange(functional.linear(tokens, self.qkv.weight, bias), "b n (s h d) -> s b h n d", s=3, h=self.heads)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj(rearrange(attention @ v, "b h n d -> b n (h d)"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.attn, self.fc1, self.fc2 = Attention(width, heads), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.fc2(functional.gelu(self.fc1(self.norm2(tokens))))


class Straightforward(nn.Module):
    """The autoencoder. `forward` takes normalized pixels `(B, C, T, H, W)` and bool masks `(B, N)` on the device."""

    def __init__(self, size: Size, clip: ClipShape):
        super().__init__()
        self.clip, patch = clip, (clip.tubelet, clip.patch, clip.patch)
        self.embed = nn.Conv3d(clip.channels, size.width, patch, stride=patch)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, size.mlp_hidden) for _ in range(size.depth))
        self.encoder_norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.bridge = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        decoder = (size.decoder_width, size.decoder_heads, size.decoder_mlp_hidden)
        self.decoder = nn.ModuleList(Block(*decoder) for _ in range(size.decoder_depth))
        self.norm, self.head = nn.LayerNorm(size.decoder_width, eps=NORM_EPS), nn.Linear(size.decoder_width, clip.patch_values)
        self.register_buffer("positions", sincos_positions(clip.tokens, size.width)[None], persistent=False)
        self.register_buffer("decoder_positions", sincos_positions(clip.tokens, size.decoder_width)[None], persistent=False)

    def forward(self, video: Tensor, encoder_mask: Tensor, decoder_mask: Tensor) -> Tensor:
        batch = len(video)
        tokens = self.embed(video).flatten(2).transpose(1, 2)
        tokens = tokens + self.positions.type_as(tokens).clone().detach()
        visible = tokens[~encoder_mask].reshape(batch, -1, tokens.shape[-1])
        for block in self.blocks:
            visible = block(visible)
        visible = self.bridge(self.encoder_norm(visible))
        positions = self.decoder_positions.expand(batch, -1, -1).type_as(visible).clone().detach()
        visible_positions = positions[~encoder_mask].reshape(batch, -1, visible.shape[-1])
        decoded_positions = positions[~decoder_mask].reshape(batch, -1, visible.shape[-1])
        tokens = torch.cat([visible + visible_positions, self.mask_token + decoded_positions], dim=1)
        for block in self.decoder:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, -decoded_positions.shape[1] :]))

    @torch.no_grad()
    def target(self, video: Tensor, decoder_mask: Tensor) -> Tensor:
        """Return the standardized pixels of the decoded patches, computed for all patches first."""
        mean, std = (
            torch.tensor(values, device=video.device)[None, :, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        clip, pixels = self.clip, video * std + mean
        patches = rearrange(
            pixels, "b c (t k) (h p) (w q) -> b (t h w) (k p q) c", k=clip.tubelet, p=clip.patch, q=clip.patch
        )  # fmt: skip
        patches = (patches - patches.mean(-2, keepdim=True)) / (patches.var(-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
        targets = rearrange(patches, "b n v c -> b n (v c)")
        return targets[~decoder_mask].reshape(len(video), -1, targets.shape[-1])

    def load_our_weights(self, state: dict[str, Tensor]) -> None:
        """Load the weights of our VideoMAE, whose k bias is zero."""
        clip, ours = self.clip, dict(state)
        embed = ours.pop("encoder.embed.weight")
        shape = (clip.channels, clip.tubelet, clip.patch, clip.patch)
        theirs = {"embed.weight": embed.unflatten(1, shape), "mask_token": ours.pop("mask_token")[None, None]}
        for name, value in ours.items():
            for old, new in _NAMES:
                name = name.replace(old, new)
            if name.endswith("qkv.bias"):
                prefix = name.removesuffix("qkv.bias")
                theirs[f"{prefix}q_bias"], _, theirs[f"{prefix}v_bias"] = value.chunk(3)
            else:
                theirs[name] = value
        self.load_state_dict(theirs)


_NAMES = (
    ("encoder.embed", "embed"), ("encoder.trunk.norm", "encoder_norm"), ("encoder.trunk.blocks", "blocks"),
    ("decoder.blocks", "decoder"), ("mlp.fc", "fc"),
)  # fmt: skip

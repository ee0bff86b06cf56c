"""Our model against tensors that the official VideoMAE V2 code produced (black box; not part of a clone)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vmae_lab.masking import loss_positions, visible_index
from vmae_lab.models.checkpoints import from_official_classifier, from_official_pretrain, load_weights, part_of
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.videomae import VideoMAE, reconstruction_loss
from vmae_lab.training.optim import cosine_schedule, parameter_groups

TINY = Size(48, 3, 4, 192, 24, 2, 2, 96, patch=8)
CLIP = ClipShape(frames=8, side=32, patch=8)


def reference(parity: Path, name: str) -> tuple[dict, dict]:
    return load_file(parity / f"{name}.safetensors"), json.loads((parity / f"{name}.json").read_text())


def close(name: str, ours: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    """Compare, and say how far apart they were (`pytest -s` shows it)."""
    print(f"{name}: largest difference {(ours - expected).abs().max():.1e}, allowed {atol:.1e}")
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0, msg=lambda words: f"{name}: {words}")


def tiny_model(state: dict, prefix: str, **options: float) -> VideoMAE:
    model = VideoMAE(TINY, CLIP, **options)
    load_weights(model, from_official_pretrain(part_of(state, prefix)), prefix)
    return model


@pytest.mark.parametrize("variant", ["dual50", "none"])
@pytest.mark.parametrize("normalise", [True, False], ids=["norm", "raw"])
def test_pretraining_step(parity, variant, normalise):
    tensors, facts = reference(parity, "pretrain_tiny")
    kind = "norm" if normalise else "raw"
    model = tiny_model(tensors, "state.", normalise_target=normalise)
    video, encoder_mask = tensors["in.video"], tensors["in.enc_mask"].bool()
    decoder_mask = tensors[f"{variant}.dec_mask"].bool()

    close("encoder output", model.encoder(video, visible_index(encoder_mask)), tensors["enc.output"], 2e-5)
    prediction, decoded = model(video, encoder_mask, None if variant == "none" else decoder_mask)
    close(f"output {variant}", prediction, tensors[f"{variant}.output"], 2e-5)
    target = model.target(video, decoded)
    close(f"{kind} target {variant}", target, tensors[f"{variant}.labels_{kind}"], 2e-5)
    counted = loss_positions(encoder_mask, decoded)
    assert torch.equal(counted, tensors[f"{variant}.loss_mask"].bool())
    loss = reconstruction_loss(prediction, target, counted)
    expected_loss = facts["variants"][variant][f"loss_{kind}"]
    print(f"{kind} loss {variant}: {loss.item():.7f}, reference {expected_loss:.7f}")
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    if not normalise:
        return
    loss.backward()
    expected = from_official_pretrain(part_of(tensors, f"{variant}.grad."))
    assert expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        atol = 1e-5 * expected[name].abs().max().item() + 1e-7
        torch.testing.assert_close(parameter.grad, expected[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_raw_pixels_equal_normalised_ones(parity):
    """uint8 in, normalised on the device: the same function as normalised float in."""
    tensors, _ = reference(parity, "pretrain_tiny")
    model = tiny_model(tensors, "state.")
    raw = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (raw / 255 - mean.view(3, 1, 1, 1)) / std.view(3, 1, 1, 1)
    mask = tensors["in.enc_mask"].bool()
    for (ours, index), (other, _) in [(model(raw, mask), model(normalised, mask))]:
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.target(raw, index), model.target(normalised, index), atol=1e-4, rtol=0)


def test_ten_training_steps(parity):
    """AdamW, parameter groups and schedules: ten steps of the official loop, loss by loss, and the weights they end at."""
    tensors, facts = reference(parity, "trajectory_tiny")
    model = tiny_model(tensors, "state0.")
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95), eps=1e-8)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for step, expected in enumerate(facts["losses"]):
        for group in optimizer.param_groups:
            group["lr"] = cosine_schedule(step, steps=10, warmup=5, start=0.0, peak=2e-3, end=1e-5)
            if group["weight_decay"] > 0:
                group["weight_decay"] = cosine_schedule(step, steps=10, warmup=0, start=0.0, peak=0.05, end=0.2)
            assert group["lr"] == pytest.approx(facts["lr_per_group"][step][0], rel=1e-9, abs=1e-15)
        video = (tensors[f"step{step}.video_uint8"] / 255 - mean) / std
        encoder_mask, decoder_mask = (tensors[f"step{step}.{m}_mask"].bool() for m in ("enc", "dec"))
        prediction, decoded = model(video, encoder_mask, decoder_mask)
        loss = reconstruction_loss(prediction, model.target(video, decoded), loss_positions(encoder_mask, decoded))
        print(f"step {step}: loss {loss.item():.6f}, reference {expected:.6f}")
        assert loss.item() == pytest.approx(expected, rel=1e-4), f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert norm.item() == pytest.approx(facts["grad_norms"][step], rel=1e-3)
        optimizer.step()
    for name, expected in from_official_pretrain(part_of(tensors, "state10.")).items():
        ours = model.state_dict()[name]
        if name.endswith("qkv.bias"):  # our k bias has no effect, and no gradient but rounding, which Adam scales up
            ours, expected = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (ours, expected))
        close(f"after ten steps {name}", ours, expected, 2e-6)


def test_edge_case_targets(parity):
    """Cubes of nearly no variance tell sqrt(var) + eps from sqrt(var + eps)."""
    tensors, facts = reference(parity, "targets_edge")
    model = VideoMAE(TINY, ClipShape(frames=4, side=32, patch=16))
    video = next(v for k, v in tensors.items() if k.startswith("in.") or k == "video")
    everything = torch.arange(8)[None]
    ours = model.target(video, everything)
    comparable = [i for i, token in enumerate(facts["tokens"]) if token != "flat colour"]  # that one is rounding noise
    difference = (ours - tensors["labels_norm"])[:, comparable].abs().amax((0, 2))
    allowed = 4 * torch.tensor(facts["fp32_vs_fp64_maxabs_per_token"])[comparable] + 1e-6
    assert (difference <= allowed).all(), (difference, allowed)
    model.normalise_target = False
    torch.testing.assert_close(model.target(video, everything), tensors["labels_raw"], atol=1e-6, rtol=0)


def test_classifier(parity):
    tensors, _ = reference(parity, "finetune_tiny")
    model = VideoClassifier(TINY, CLIP, classes=10).eval()
    load_weights(model, from_official_classifier(part_of(tensors, "state.")), "finetune_tiny")
    features = model.head.fc_norm(model.encoder(tensors["in.video"]).mean(1))
    close("classifier features", features, tensors["meanpool.features"], 2e-5)
    logits = model(tensors["in.video"])
    close("classifier logits", logits, tensors["meanpool.logits"], 2e-5)
    torch.nn.functional.cross_entropy(logits, tensors["in.labels"].long()).backward()
    expected = from_official_classifier(part_of(tensors, "meanpool.grad."))
    for name, parameter in model.named_parameters():
        atol = 1e-5 * expected[name].abs().max().item() + 1e-7
        torch.testing.assert_close(parameter.grad, expected[name], atol=atol, rtol=0)

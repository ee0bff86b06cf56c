"""Our model equals tensors that the official VideoMAE V2 code produced (not part of a clone)."""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vmae_lab.masking import loss_positions, visible_index
from vmae_lab.models.checkpoints import from_official_classifier, from_official_pretrain, load_weights, part_of
from vmae_lab.models.checkpoints.formats import from_transformers, to_official, to_transformers, transformers_config
from vmae_lab.models.checkpoints.load import read_file
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import SIZES, ClipShape, Size
from vmae_lab.models.videomae import VideoMAE, reconstruction_loss
from vmae_lab.training.optim import cosine_schedule, parameter_groups

TINY = Size(48, 3, 4, 192, 24, 2, 2, 96, patch=8)
CLIP = ClipShape(frames=8, side=32, patch=8)
GIVEN = {"frames": CLIP.frames, "side": CLIP.side, "positions": "recompute"}  # of the training; not in these files


def reference(parity: Path, name: str) -> tuple[dict, dict]:
    return load_file(parity / f"{name}.safetensors"), json.loads((parity / f"{name}.json").read_text())


def close(name: str, ours: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    """Compare, and print the largest difference (shown by `pytest -s`)."""
    print(f"{name}: largest difference {(ours - expected).abs().max():.1e}, allowed {atol:.1e}")
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0, msg=lambda message: f"{name}: {message}")


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


def test_raw_and_normalized_pixels_are_equivalent(parity):
    """uint8 input, normalized by the model, equals normalized float input."""
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
    """AdamW, parameter groups and schedules: losses and final weights of ten steps of the official loop."""
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
        if name.endswith("qkv.bias"):  # the k bias has no effect; its gradient is rounding noise, which Adam scales up
            ours, expected = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (ours, expected))
        close(f"after ten steps {name}", ours, expected, 2e-6)


def test_edge_case_targets(parity):
    """Patches of almost no variance distinguish sqrt(var) + eps from sqrt(var + eps)."""
    tensors, facts = reference(parity, "targets_edge")
    model = VideoMAE(TINY, ClipShape(frames=4, side=32, patch=16))
    video = next(v for k, v in tensors.items() if k.startswith("in.") or k == "video")
    everything = torch.arange(8)[None]
    ours = model.target(video, everything)
    comparable = [i for i, token in enumerate(facts["tokens"]) if token != "flat colour"]  # its target is rounding noise
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


def same_shapes(state: dict, keys: dict, *parts: str) -> None:
    """That a state's names are a reference's, and their shapes; `parts` name it in messages."""
    assert {key: list(value.shape) for key, value in state.items()} == keys, parts


def test_official_names_and_shapes(parity):
    """Names and shapes of ViT-B in the official code's state dictionaries."""
    keys = {kind: json.loads((parity / f"keys_{kind}_base.json").read_text()) for kind in ("pretrain", "finetune")}
    with torch.device("meta"):
        models = {
            "pretrain": VideoMAE(SIZES["base"], ClipShape()),
            "finetune": VideoClassifier(SIZES["base"], ClipShape(), classes=400),
        }
    read = {"pretrain": from_official_pretrain, "finetune": from_official_classifier}
    for kind, model in models.items():
        ours = model.state_dict()
        same_shapes(to_official(ours, ClipShape()), keys[kind], kind, "ours in official names")
        official = {key: torch.empty(shape, device="meta") for key, shape in keys[kind].items()}
        same_shapes(read[kind](official), {key: list(value.shape) for key, value in ours.items()}, kind, "official in ours")


@pytest.mark.parametrize("name", ["pretrain_tiny", "finetune_tiny"])
def test_official_round_trip_is_bit_equal(parity, tmp_path, name):
    tensors, facts = reference(parity, name)
    official = part_of(tensors, "state.")
    assert facts
    torch.save({"model": official, "args": argparse.Namespace(lr=1.0)}, tmp_path / "official.pth")
    kind = VideoMAE if name == "pretrain_tiny" else VideoClassifier
    model = kind.from_pretrained(tmp_path / "official.pth", size=TINY, **GIVEN)
    if kind is VideoClassifier:
        close("logits of the file", model(tensors["in.video"]), tensors["meanpool.logits"], 1e-5)
    back = read_file(model.save_pretrained(tmp_path / "back", "official") / "model.pth")[0]
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], official[key]) for key in official)


def test_pretrained_weights_in_fine_tuning(parity, tmp_path):
    """The weights of a pre-training file that the official code reports as missing and as unexpected."""
    lists = json.loads((parity / "keys_pretrain_to_finetune.json").read_text())
    tensors, _ = reference(parity, "pretrain_tiny")
    official = part_of(tensors, "state.")
    torch.save({"model": official}, tmp_path / "official.pth")
    with pytest.warns(UserWarning, match="newly initialized") as caught:
        model = VideoClassifier.from_pretrained(tmp_path / "official.pth", classes=4, size=TINY, **GIVEN)
    fresh = [key.removeprefix("head.") for key in str(caught[0].message).split("use: ")[1].split(", ")]
    assert sorted(fresh) == lists["missing_in_checkpoint"]
    taken = to_official(model.state_dict(), CLIP)
    given = {key.removeprefix("encoder."): value for key, value in official.items()}
    same = {key for key in taken if key in given and torch.equal(taken[key], given[key])}
    assert same == taken.keys() - set(lists["missing_in_checkpoint"])
    unused = {key for key in given if key not in taken}
    # The lists are for a decoder of four blocks; this one has two.
    assert unused == {
        key for key in lists["unexpected_from_checkpoint"] if not key.startswith(("decoder.blocks.2", "decoder.blocks.3"))
    }


def test_transformers_names_in_both_directions(parity, tmp_path):
    """A tiny model in both layouts, with the names of files and those of transformers 5 in memory."""
    tensors = load_file(parity / "hf_tiny.safetensors")
    for kind in ("pretrain", "finetune"):
        official, theirs = (part_of(tensors, f"{layout}.{kind}.") for layout in ("official", "hf"))
        for written, expected in (
            (to_transformers(official), as_in_files(theirs)),
            (from_transformers(as_in_files(theirs)), official),
            (from_transformers(theirs), official),
        ):
            assert written.keys() == expected.keys(), kind
            assert all(torch.equal(written[key], expected[key]) for key in expected), kind


def as_in_files(state):
    """Rename from transformers 5's names in memory to those of files and of version 4."""
    ends = {"query.bias": "q_bias", "value.bias": "v_bias"}
    return {re.sub("(query|value)[.]bias$", lambda end: ends[end[0]], key): value for key, value in state.items()}


@pytest.mark.parametrize("version", [4, 5], ids=["names of version 4", "names of version 5"])
def test_transformers_files_give_the_reference_output(parity, tmp_path, version):
    tensors = load_file(parity / "hf_tiny.safetensors")
    config = transformers_config(ModelConfig(model="VideoClassifier", size=TINY, clip=CLIP, classes=10, readout="mean"))
    for kind in ("pretrain", "finetune"):
        state = part_of(tensors, f"hf.{kind}.")
        folder = tmp_path / kind
        folder.mkdir()
        save_file(state if version == 5 else as_in_files(state), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    video = tensors["in.video"]
    prediction, _ = VideoMAE.from_pretrained(tmp_path / "pretrain")(video, tensors["in.enc_mask"].bool())
    close("transformers pre-training", prediction, tensors["pretrain.output"], 1e-5)
    logits = VideoClassifier.from_pretrained(tmp_path / "finetune")(video)
    close("transformers classifier", logits, tensors["finetune.logits"], 1e-5)

"""The notebook `use_a_checkpoint` with checkpoints of other formats: plans, tables, figures, and nbval."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from random_weights import randomized

from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.estimate import stage_table
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook, use_a_checkpoint
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape, Size

os.environ.setdefault("HF_HUB_OFFLINE", "1")
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "use_a_checkpoint.ipynb"
MICRO = SIZES["micro"]


def planned(smoke: dict, **parameters) -> Plan:
    arms = EXPERIMENTS["use_a_checkpoint"].arms
    return plan_notebook("use_a_checkpoint", build_recipe({"arms": list(arms), **smoke, **parameters}, arms))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A pre-trained model that transformers wrote: its encoder has no final LayerNorm."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=MICRO.width, num_hidden_layers=MICRO.depth,
        num_attention_heads=MICRO.heads, intermediate_size=MICRO.mlp_hidden, decoder_hidden_size=MICRO.decoder_width,
        decoder_num_hidden_layers=MICRO.decoder_depth, decoder_num_attention_heads=MICRO.decoder_heads,
        decoder_intermediate_size=MICRO.decoder_mlp_hidden,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    transformers.VideoMAEForPreTraining(config).save_pretrained(folder)
    return folder


def test_the_default_checkpoint_is_a_pretraining_that_other_notebooks_share(smoke):
    plan = planned(smoke)
    own = plan_notebook("bring_your_own_videos", build_recipe({"arms": ["pretrained"], **smoke}))
    checkpoint = own.first("pretrained").encoder
    for cell in plan.cells:
        if cell.arm in ("frozen", "finetuned"):
            assert cell.encoder == checkpoint, "there is one checkpoint for all seeds"
        if cell.arm == "continued":
            assert (cell.encoder.kind, cell.encoder.inputs) == ("pretrain", (checkpoint,))
            assert cell.encoder.settings["seed"] == cell.seed


def test_the_model_becomes_that_of_the_checkpoint(smoke, pretrained, tmp_path):
    plan = planned(smoke, checkpoint=str(pretrained))
    model = plan.recipe.model
    assert (model.size, model.frames, model.side, model.patch) == ("micro", 4, 32, 8)
    assert {cell.encoder.kind for cell in plan.cells if cell.arm == "frozen"} == {"opened"}
    odd = VideoClassifier(Size(48, 3, 4, 192, 24, 2, 2, 96, patch=8), ClipShape(4, 32, 2, 8), 3)
    odd.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"width 48, depth 3, .* which is no size of"):
        planned(smoke, checkpoint=str(tmp_path))


def test_one_pass_returns_all_layers():
    """Equal bit for bit to the outputs of the blocks in a normal pass, and to one pass per layer."""
    encoder = randomized(VideoClassifier(MICRO, ClipShape(4, 32, 2, 8), 5)).encoder.eval()
    encoder.trunk.norm = torch.nn.LayerNorm(MICRO.width)
    torch.nn.init.normal_(encoder.trunk.norm.weight)
    video = torch.randint(256, (3, 3, 4, 32, 32), dtype=torch.uint8)
    outputs = []
    for block in encoder.trunk.blocks:
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
    with torch.no_grad():
        last = encoder(video)
        expected = [*outputs[:-1], last]
        layers = list(encoder.layers(video))
        assert len(layers) == len(expected) == MICRO.depth
        for number, (tokens, wanted) in enumerate(zip(layers, expected, strict=True), 1):
            assert torch.equal(tokens, wanted)
            assert torch.equal(encoder(video, layer=number), wanted)


@pytest.mark.slow
def test_a_published_classifier_is_used_in_all_ways(smoke, tmp_path, project):
    """An official-style file with a head of its own, no decoder, and names of 5 classes."""
    model = randomized(VideoClassifier(MICRO, ClipShape(4, 32, 2, 8), 5))
    model.class_names = ("a", "b", "c", "d", "e")
    model.save_pretrained(tmp_path / "model", "transformers")
    plan = planned({**smoke, "seeds": [0]}, checkpoint=str(tmp_path / "model"))
    store = RunStore(project / "runs")
    with pytest.warns(UserWarning, match="has no decoder"):  # before it is continued
        store.complete_all(plan.stages, plan.recipe.compute)
    results = Results(plan, plan.rows(store), store)
    rows, video, labels = use_a_checkpoint.held_out_clips(plan, 2)
    assert use_a_checkpoint.reconstruction(results, rows) is None
    shown = use_a_checkpoint.checkpoint_table(results).frame.set_index("property").value
    assert (shown["decoder"], shown["class head"]) == ("no", "5 classes")
    own = use_a_checkpoint.own_predictions(results, rows, video, labels).frame
    assert all(text[0] in "abcde" for text in own["most probable classes"])
    classifier = VideoClassifier.from_pretrained(use_a_checkpoint.classifier_folder(results))
    assert classifier.class_names == plan.recipe.data.class_names
    measured = use_a_checkpoint.layers(results)
    assert measured.groupby("arm").layer.apply(list).to_dict() == {arm: [1, 2, 3] for arm in use_a_checkpoint.LAYER_ARMS}
    assert len(use_a_checkpoint.methods_table(results).frame) == len(use_a_checkpoint.METHODS)
    assert "The highest mean is that of" in use_a_checkpoint.conclusions(results, measured)[-1]


@pytest.mark.slow
def test_nbval_passes_with_a_folder_of_transformers(smoke, pretrained, project):
    """A copy of the notebook whose parameters cell names the folder, with the stages of its plan as the stored output."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    [line] = [line for line in parameters.source.splitlines() if line.startswith("checkpoint = None")]
    parameters.source = parameters.source.replace(line, f'checkpoint = "{pretrained}"')
    checked = next(cell for cell in notebook.cells if "NBVAL_CHECK_OUTPUT" in cell.source)
    checked.outputs[0].text = stage_table(planned(smoke, checkpoint=str(pretrained))).to_string(index=False) + "\n"
    nbformat.write(notebook, project / "copy.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider", project / "copy.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert list((project / "reports").glob("smoke-variant-*/copy/README.md"))

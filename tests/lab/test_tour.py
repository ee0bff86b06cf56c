"""The tour: what is counted of both masks, panels that follow a choice, and their pictures where nobody can click."""

import io
from base64 import b64decode

import numpy as np
import pytest
import torch
from PIL import Image

from vmae_lab.lab import panels
from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.animations import looping_gif
from vmae_lab.lab.pictures import rebuilt
from vmae_lab.lab.presentation import dual_masking
from vmae_lab.lab.presentation.dual_masking import PAPER_CLIP, Choice
from vmae_lab.lab.recipe import build_recipe
from vmae_lab.lab.workbook import WORKBOOK, plan_notebook
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE

NAME = "00_dual_masking_tour"
CLIP = ClipShape(8, 24, 2, 4)


@pytest.fixture
def plan(smoke) -> Plan:
    arms = WORKBOOK[NAME].arms
    return plan_notebook(NAME, build_recipe({"arms": list(arms), **smoke}, arms))


def test_the_tour_needs_one_seed_and_a_model_of_plain_pixels(plan):
    assert [cell.seed for cell in plan.cells] == [0]
    recipe = plan.first("pixels").recipe
    assert not recipe.pretrain.normalise_target
    assert recipe.pretrain.batch_size == 2 * plan.recipe.pretrain.batch_size


def test_the_counts_of_the_papers_grid():
    """Shared facts of the method: 160 of 1568 tokens are seen; of 784 decoded ones 80 were seen, the loss reads 704."""
    counts = dual_masking.counts_table(dual_masking.compared(MaskSettings()), PAPER_CLIP)
    assert counts.loc["running cell 50 %"].tolist() == [1568, 160, 784, 80, 704, 704]
    assert counts.loc["no decoder mask (V1)"].tolist() == [1568, 160, 1408, 0, 1408, 0]


def test_parts_are_a_partition_and_the_phase_is_the_chosen_one():
    drawn = [Choice(phase=phase).drawn(CLIP.grid) for phase in range(4)]
    for masks in drawn:
        assert sum(part.int() for part in dual_masking.parts_of(*masks).values()).eq(1).all()
    assert len({mask.numpy().tobytes() for _, mask in drawn}) == 4, "four phases, four decoder masks"
    assert len({mask.numpy().tobytes() for mask, _ in drawn}) == 1, "and one encoder mask"
    assert not torch.equal(Choice(draw=1).drawn(CLIP.grid)[0], drawn[0][0])


def test_the_encoders_part_of_the_cost_is_the_same_without_a_decoder_mask():
    costs = dual_masking.cost_table(Choice(), {"base": ModelSettings(size="base")})
    assert costs.encoder.nunique() == 1
    assert costs.sum(axis=1).div(1e9).round(2).tolist() == [35.44, 25.84], "MACs of the paper's table 1, without norms"


def test_a_choice_that_a_grid_cannot_have_is_left_out_of_the_costs():
    odd = ModelSettings(size="tiny", frames=6, side=20, patch=4)  # 3 x 5 x 5: running cells do not fit
    costs = dual_masking.cost_table(Choice(MaskSettings(encoder_ratio=0.5)), {"odd": odd})
    assert list(costs.index) == [("odd", "no decoder mask")]


def test_what_is_rebuilt_stands_where_it_was_asked_for():
    model = VideoMAE(ModelSettings(size="micro", patch=4).dimensions, CLIP, False).eval()
    video = torch.randint(0, 256, (1, 3, 8, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder_mask, decoder_mask = Choice(MaskSettings(encoder_ratio=0.75)).drawn(CLIP.grid)
    frames = rebuilt(model, video, encoder_mask, decoder_mask)
    cubes = {name: strip[::2, ::4, ::4].reshape(-1, 3) for name, strip in frames.items()}  # a corner of each cube
    grey = cubes["encoder sees"][encoder_mask[0].numpy()]
    assert (grey == grey[0]).all()
    seen = ~encoder_mask[0].numpy()
    for name in ("encoder sees", "reconstruction"):
        assert (cubes[name][seen] == cubes["original"][seen]).all(), "what is seen stays"
    asked = ~decoder_mask[0].numpy()
    assert (np.abs(cubes["decoder rebuilds"][~asked].astype(int) - grey[0]) <= 1).all()
    hidden = asked & ~seen
    assert (cubes["decoder rebuilds"][hidden] != grey[0]).any(axis=1).mean() > 0.9


def test_what_is_taken_from_the_truth_stands_beside_a_normalised_reconstruction():
    """A model that says nothing (zeros) rebuilds just the true cube means; one of plain pixels is shown without them."""
    video = torch.randint(0, 256, (1, 3, 8, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size, (encoder_mask, _) = ModelSettings(size="micro", patch=4).dimensions, Choice().drawn(CLIP.grid)
    silent = VideoMAE(size, CLIP).eval()
    torch.nn.init.zeros_(silent.head.weight)
    frames = rebuilt(silent, video, encoder_mask)
    assert (frames["reconstruction"] == frames["cube means"]).all()
    assert "cube means" not in rebuilt(VideoMAE(size, CLIP, normalise_target=False).eval(), video, encoder_mask)


def test_a_loop_has_every_frame_and_starts_again():
    strips = {name: np.full((5, 24, 24, 3), np.arange(0, 250, 50)[:, None, None, None], np.uint8) for name in "ab"}
    written = looping_gif(strips)
    assert written == looping_gif(strips)
    loop = Image.open(io.BytesIO(written))
    assert (loop.n_frames, loop.info["loop"]) == (5, 0)
    loop.seek(3)
    assert loop.convert("RGB").getpixel((60, 90)) == (150, 150, 150)


def test_panels_follow_what_is_chosen_in_any_of_them(plan):
    controls = panels.Controls(plan)
    masks, costs = panels.mask_panel(plan, controls), panels.cost_panel(plan, controls)
    before = masks._picture.value, costs._picture.value, masks._words.value
    controls.decoder_ratio.value = 0.75
    after = masks._picture.value, costs._picture.value, masks._words.value
    assert all(one != other for one, other in zip(before, after, strict=True))
    controls.phase.value = 2
    assert (masks._picture.value != after[0], costs._picture.value == after[1]) == (True, True)


def test_a_choice_that_cannot_be_is_told_and_the_picture_stays(plan):
    controls = panels.Controls(plan)
    panel = panels.mask_panel(plan, controls)
    controls.encoder_ratio.value = 0.9
    before = panel._picture.value
    controls.encoder.value = "running_cell"
    assert "one of .25, .5, .75" in panel._words.value
    assert panel._picture.value == before


def test_where_nobody_can_click_a_panel_is_a_picture(plan):
    model = VideoMAE(plan.recipe.model.dimensions, plan.recipe.model.clip).eval()
    for panel in (panels.leakage_panel(panels.Controls(plan)), panels.reconstruction_panel(plan, model, panels.Controls(plan))):
        bundle = panel._repr_mimebundle_()
        assert b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert "application/vnd.jupyter.widget-view+json" in bundle

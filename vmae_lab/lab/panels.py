"""Interactive panels for a notebook: pictures that follow what is chosen, and are pictures alone where nobody can click."""

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError

from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.animations import looping_gif
from vmae_lab.lab.pictures import example_clips, names_of, picture_clip, random_clips, rebuilt
from vmae_lab.lab.presentation import dual_masking
from vmae_lab.lab.presentation.dual_masking import Choice
from vmae_lab.masking import CELL_PHASES, CELL_RATIOS, MASKS, MaskSettings
from vmae_lab.models.videomae import VideoMAE

Shown = tuple[bytes, str]  # a picture, png or gif, and words below it in HTML
ENCODER_RATIOS = (0.25, 0.5, 0.75, 0.9, 0.95)
CLIPS, DRAWS = 8, 8  # how many clips and random draws are to choose from


class Controls:
    """What can be chosen of both masks, at first those of the plan's model, and of some clips.

    Panels share it: a choice that is made in one is made in all.
    """

    def __init__(self, plan: Plan):
        masks = plan.first(plan.pretrained[0]).recipe.mask
        self.rows = random_clips(plan, CLIPS)
        slider = partial(ipywidgets.SelectionSlider, continuous_update=False)
        whole = partial(ipywidgets.IntSlider, continuous_update=False, min=0)
        shares = [(f"{ratio:.0%}", ratio) for ratio in ENCODER_RATIOS]
        cells = [share for share in shares if share[1] in CELL_RATIOS]  # the ratios that every kind of mask can have
        self.encoder = ipywidgets.Dropdown(options=list(MASKS), value=masks.encoder, description="encoder")
        self.encoder_ratio = slider(options=shares, value=masks.encoder_ratio, description="hidden")
        self.decoder = ipywidgets.Dropdown(options=["none", *MASKS], value=masks.decoder, description="decoder")
        self.decoder_ratio = slider(options=cells, value=masks.decoder_ratio or 0.5, description="left out")
        self.phase = whole(max=CELL_PHASES - 1, description="cell's phase")
        self.draw = whole(max=DRAWS - 1, description="draw")
        self.clip = whole(max=len(self.rows) - 1, description="clip")
        self.masked = slider(options=cells, value=0.75, description="masked")

    def widgets(self, names: Sequence[str]) -> list[ipywidgets.Widget]:
        return [getattr(self, name) for name in names]

    @property
    def choice(self) -> Choice:
        """Raises ValueError where the masks do not go together."""
        decoder = self.decoder.value
        ratio = 0.0 if decoder == "none" else self.decoder_ratio.value
        masks = MaskSettings(
            encoder=self.encoder.value, encoder_ratio=self.encoder_ratio.value, decoder=decoder, decoder_ratio=ratio
        )
        return Choice(masks, self.phase.value, self.draw.value, self.rows[self.clip.value])


class Panel(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Some controls, a picture and words that follow them.

    Its output holds the picture as it is when shown, too: that is what a page or a viewer without widgets has.
    """

    def __init__(self, controls: Controls, names: Sequence[str], draw: Callable[[Choice], Shown]):
        self._controls, self._draw = controls, draw
        self._picture = ipywidgets.Image(layout={"align_self": "flex-start", "max_width": "100%"})
        self._words = ipywidgets.HTML()
        chosen = controls.widgets(names)
        rows = [ipywidgets.HBox(chosen[place : place + 3]) for place in range(0, len(chosen), 3)]
        super().__init__([*rows, self._picture, self._words])
        for widget in chosen:
            widget.observe(self._follow, "value")
        self._follow()

    def _follow(self, _change: object = None) -> None:
        """Draw what is chosen, or say why the grid cannot have it; the last picture then stays."""
        try:
            picture, words = self._draw(self._controls.choice)
        except ValueError as error:
            self._words.value = f"<b>{_plain(error)}</b>"
            return
        self._picture.format = "gif" if picture.startswith(b"GIF") else "png"
        self._picture.value, self._words.value = picture, words

    def _repr_mimebundle_(self, **given: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**given)
        still = io.BytesIO()
        Image.open(io.BytesIO(self._picture.value)).save(still, "PNG")  # of a loop, its first frame
        return {**(bundle or {}), "image/png": b64encode(still.getvalue()).decode()}


def mask_panel(plan: Plan, controls: Controls) -> Panel:
    """Both masks on a clip, and who has which cube, counted."""
    shape = plan.recipe.model.clip

    def draw(choice: Choice) -> Shown:
        figure = dual_masking.mask_figure(_frames(plan, choice), choice, shape)
        return _png(figure), dual_masking.counts_table({"tokens of this clip": choice}, shape).to_html(border=0)

    names = ("encoder", "encoder_ratio", "draw", "decoder", "decoder_ratio", "phase", "clip")
    return Panel(controls, names, draw)


def cost_panel(plan: Plan, controls: Controls) -> Panel:
    """What the masks cost, for the model here and for ViT-B."""
    models = dual_masking.cost_models(plan)
    return Panel(
        controls,
        ("encoder_ratio", "decoder", "decoder_ratio"),
        lambda choice: (_png(dual_masking.cost_figure(dual_masking.cost_table(choice, models))), ""),
    )


def leakage_panel(controls: Controls) -> Panel:
    """What of a masked cube's surroundings is visible, for three kinds of mask at one ratio."""
    return Panel(controls, ("masked",), lambda choice: (_png(dual_masking.leakage_figure(controls.masked.value)), ""))


def reconstruction_panel(plan: Plan, model: VideoMAE, controls: Controls) -> Panel:
    """A clip, what the encoder sees, and what the model rebuilds under the chosen masks, as a loop."""

    def draw(choice: Choice) -> Shown:
        frames = rebuilt(model, picture_clip(plan, choice.clip), *choice.drawn(plan.recipe.model.clip.grid))
        return looping_gif(frames), f"clip: {names_of(plan, example_clips(plan), [choice.clip])[0]}"

    names = ("encoder", "encoder_ratio", "draw", "decoder", "decoder_ratio", "phase", "clip")
    return Panel(controls, names, draw)


def _frames(plan: Plan, choice: Choice) -> np.ndarray:
    return picture_clip(plan, choice.clip)[0].permute(1, 2, 3, 0).numpy()


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None}, dpi=110, bbox_inches="tight")
    plt.close(figure)  # else the notebook shows it a second time
    return written.getvalue()


def _plain(error: ValueError) -> str:
    """What is wrong, without pydantic's frame."""
    if isinstance(error, ValidationError):
        return "; ".join(finding["msg"].removeprefix("Value error, ") for finding in error.errors())
    return str(error)

"""Interactive panels for notebooks: controls, and below them a picture that is updated and stays in the saved notebook."""

import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError

from vmae_lab.lab.experiments import dual_masking_tour as tour
from vmae_lab.lab.experiments.dual_masking_tour import Choice
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.clip_pictures import looping_png
from vmae_lab.lab.plots.examples import example_clips, names_of, picture_clip, random_clips, rebuilt
from vmae_lab.masking import CELL_PHASES, CELL_RATIOS, MASKS, MaskSettings
from vmae_lab.models.videomae import VideoMAE

MASK_CONTROLS = ("encoder", "encoder_ratio", "draw", "decoder", "decoder_ratio", "phase", "clip")
Values = Mapping[str, Any]  # control -> value
Shown = tuple[bytes, str]  # a PNG, and HTML text about it
ENCODER_RATIOS = (0.25, 0.5, 0.75, 0.9, 0.95)
CLIPS, DRAWS = 8, 8  # number of clips and random draws to choose from
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDTH, LABEL_WIDTH = "300px", "80px"  # of a control and of its label; controls wrap on a narrow page
FADED = 0.7  # opacity of the white over a picture that does not show the current choice
WRONG = "<b style='color: #b00020'>{}. The picture shows the last possible choice.</b>"


class Controls:
    """Makes the controls of panels, which start with the masks of the plan's model. A change updates only its own panel."""

    def __init__(self, plan: Plan):
        masks = plan.first(plan.pretrained[0]).recipe.mask
        self.rows = random_clips(plan, CLIPS)
        self.start = {
            "encoder": masks.encoder, "encoder_ratio": masks.encoder_ratio, "decoder": masks.decoder,
            "decoder_ratio": masks.decoder_ratio or 0.5, "phase": 0, "draw": 0, "clip": 0, "masked": 0.75,
        }  # fmt: skip

    def widgets(self, names: Sequence[str], start: Values) -> dict[str, ipywidgets.Widget]:
        """Return new controls by name, with the values in `start`, and otherwise with those of the plan."""
        style = {"style": {"description_width": LABEL_WIDTH}, "layout": {"width": WIDTH}}
        slider = partial(ipywidgets.SelectionSlider, continuous_update=False, **style)
        whole = partial(ipywidgets.IntSlider, continuous_update=False, min=0, **style)
        choice = partial(ipywidgets.Dropdown, **style)
        values = {**self.start, **start}

        def percentages(ratios: Sequence[float], name: str) -> list[tuple[str, float]]:
            return [(f"{ratio:.0%}", ratio) for ratio in sorted({*ratios, values[name]})]

        makers = {
            "encoder": partial(choice, options=list(MASKS), description="encoder"),
            "encoder_ratio": partial(slider, options=percentages(ENCODER_RATIOS, "encoder_ratio"), description="hidden"),
            "decoder": partial(choice, options=["none", *MASKS], description="decoder"),
            "decoder_ratio": partial(slider, options=percentages(CELL_RATIOS, "decoder_ratio"), description="left out"),
            "phase": partial(whole, max=CELL_PHASES - 1, description="cell's phase"),
            "draw": partial(whole, max=DRAWS - 1, description="draw"),
            "clip": partial(whole, max=len(self.rows) - 1, description="clip"),
            "masked": partial(slider, options=percentages(CELL_RATIOS, "masked"), description="masked"),
        }
        return {name: makers[name](value=values[name]) for name in names}

    def choice(self, values: Values) -> Choice:
        """Return the choice for the values of a panel. Raises ValueError if the masks cannot be combined."""
        values = {**self.start, **values}
        decoder = values["decoder"]
        masks = MaskSettings(
            encoder=values["encoder"], encoder_ratio=values["encoder_ratio"], decoder=decoder,
            decoder_ratio=0.0 if decoder == "none" else values["decoder_ratio"],
        )  # fmt: skip
        return Choice(masks, values["phase"], values["draw"], self.rows[values["clip"]])


class Panel:
    """Controls, and below them a text and a picture that are updated when a control changes.

    The picture is a separate output, not part of the widget. So a saved notebook contains the last one and shows it without a
    kernel, as HTML, or in a viewer without widgets.
    """

    def __init__(self, controls: Controls, names: Sequence[str], draw: Callable[[Values], Shown], **start: Any):
        self._draw = draw
        self.chosen = controls.widgets(names, start)
        self.text = ipywidgets.HTML()
        wrapping = ipywidgets.Box(list(self.chosen.values()), layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([wrapping, self.text])
        self._handle, self._displayed = DisplayHandle(), False
        for widget in self.chosen.values():
            widget.observe(self._follow, "value")
        self._follow()

    def _follow(self, _change: object = None) -> None:
        """Draw the current choice. If the token grid does not allow it, show the error and fade the last picture."""
        try:
            self.picture, self.text.value = self._draw({name: widget.value for name, widget in self.chosen.items()})
            shown = self.picture
        except ValueError as error:
            self.text.value, shown = WRONG.format(escape(_plain(error))), _faded(self.picture)
        if self._displayed:
            data, metadata = _output(shown)
            self._handle.update(data, metadata=metadata, raw=True)

    def _ipython_display_(self) -> None:
        view = {"model_id": self.widget.model_id, "version_major": 2, "version_minor": 0}
        display({WIDGET: view, "text/plain": ""}, raw=True)  # viewers without widgets show the text
        data, metadata = _output(self.picture)
        self._handle.display(data, metadata=metadata, raw=True)
        self._displayed = True


def mask_panel(plan: Plan, controls: Controls) -> Panel:
    """Return a panel of both masks on a clip, and which tokens the encoder sees and the decoder reconstructs."""
    shape = plan.recipe.model.clip

    def draw(values: Values) -> Shown:
        choice = controls.choice(values)
        counts = tour.counts_table({"tokens": choice}, shape).iloc[0].drop("tokens")
        words = "; ".join(f"{name}: {count}" for name, count in counts.items())
        frames = picture_clip(plan, choice.clip)[0].permute(1, 2, 3, 0).numpy()
        return _png(tour.mask_figure(frames, choice, shape)), f"{shape.tokens} tokens. {words}."

    return Panel(controls, MASK_CONTROLS, draw)


def cost_panel(plan: Plan, controls: Controls) -> Panel:
    """Return a panel of the cost of the masks, for the plan's model and for ViT-B. It starts with the paper's masks."""
    models, paper = tour.cost_models(plan), MaskSettings()

    def draw(values: Values) -> Shown:
        return _png(tour.cost_figure(tour.cost_table(controls.choice(values), models))), ""

    start = {"encoder_ratio": paper.encoder_ratio, "decoder": paper.decoder, "decoder_ratio": paper.decoder_ratio}
    return Panel(controls, tuple(start), draw, **start)


def leakage_panel(controls: Controls) -> Panel:
    """Return a panel of the visible neighborhood of a masked token, for three kinds of mask at one ratio."""
    return Panel(controls, ("masked",), lambda values: (_png(tour.leakage_figure(values["masked"])), ""))


def reconstruction_panel(plan: Plan, model: VideoMAE, controls: Controls) -> Panel:
    """Return a panel of a clip, what the encoder sees, and what the model reconstructs under the chosen masks, animated."""

    def draw(values: Values) -> Shown:
        choice = controls.choice(values)
        frames = rebuilt(model, picture_clip(plan, choice.clip), *choice.drawn(plan.recipe.model.clip.grid))
        name = names_of(plan, example_clips(plan), [choice.clip])[0]
        return looping_png(frames), f"clip: {escape(name)}"

    return Panel(controls, MASK_CONTROLS, draw)


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}):  # the figures have margins; "tight" would draw them twice
        figure.savefig(written, format="png", metadata={"Software": None}, dpi=110)
    plt.close(figure)  # otherwise the notebook shows it again
    return written.getvalue()


def _output(picture: bytes) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return the data and metadata of an output. The size keeps the page from moving while the next picture loads."""
    width, height = Image.open(io.BytesIO(picture)).size
    return {"image/png": b64encode(picture).decode(), "text/plain": ""}, {"image/png": {"width": width, "height": height}}


def _faded(picture: bytes) -> bytes:
    """Return a pale copy of the first frame of a picture."""
    page = Image.open(io.BytesIO(picture)).convert("RGB")
    written = io.BytesIO()
    Image.blend(page, Image.new("RGB", page.size, "white"), FADED).save(written, "PNG")
    return written.getvalue()


def _plain(error: ValueError) -> str:
    """Return the message of an error without the additions of pydantic."""
    if isinstance(error, ValidationError):
        return "; ".join(finding["msg"].removeprefix("Value error, ") for finding in error.errors())
    return str(error)

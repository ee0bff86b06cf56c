"""Lines such as `pretrain.steps = 3`, which papermill writes for `-p pretrain.steps 3`, are refused in IPython."""

from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from vmae_lab.lab.config import RecipeError, read_parameters
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.notebook_parameters import refuse_dotted_names


@pytest.fixture
def shell(project):
    """IPython after the setup cell and the parameters cell of a notebook."""
    shell = InteractiveShell.instance(user_ns={"switches": SimpleNamespace()})
    refuse_dotted_names()
    refuse_dotted_names()  # the user runs the cell twice
    assert shell.run_cell("scale = 'smoke'\nseeds = None\ndata = {}\noverride = {}").success
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrain.steps = 3", r"-p override '\{pretrain\.steps: 3\}'.*vmae-lab run NOTEBOOK -p pretrain\.steps 3"),
        ('data.lists.root = "a b"', r"""-p override '\{data\.lists\.root: "a b"\}'"""),
        ("evaluate.finetune_labels = None", r"\{evaluate\.finetune_labels: null\}"),
        ("seeds.first = 3", r"seeds\.first: unknown parameter"),
        ("pretrain.stepz = 3", r"pretrain\.stepz: unknown parameter \(did you mean 'steps'\?\)"),
        ("pretrian.steps = 3", r"pretrian\.steps: unknown parameter \(did you mean 'pretrain'\?\)"),
        ("localise.durations.long = [0, 9]", r"-p override '\{localise\.durations\.long: \[0, 9\]\}'"),
    ],
)
def test_a_dotted_name_raises_an_error_with_the_right_command(line, message, shell, capsys):
    done = shell.run_cell(f"# Parameters\nscale = 'demo'\n{line}")
    with pytest.raises(RecipeError, match=message):
        done.raise_error()


def test_attributes_of_other_objects_can_be_set(shell):
    assert shell.run_cell("switches.fast = True").success
    assert shell.user_ns["switches"].fast


def test_after_the_parameters_are_read_errors_are_those_of_python(shell, capsys):
    assert read_parameters(shell.user_ns, DECODER_MASKS).scale == "smoke"
    with pytest.raises(AttributeError):
        shell.run_cell("data.lists = 3").raise_error()

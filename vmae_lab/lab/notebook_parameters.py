"""An answer to `papermill -p pretrain.steps 3`, which writes the Python line `pretrain.steps = 3` into a notebook."""

import ast
import json
import shlex
import sys
from typing import Any

from vmae_lab.lab.config import CHECKED, unknown_name


def refuse_dotted_names() -> None:
    """Until the parameters are read, let a line such as `pretrain.steps = 3` raise a RecipeError that says what to type.

    Call it in a cell before the parameters cell. Without it such a line sets nothing, or ends in an error about Python.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell and not any(isinstance(one, _RefuseDottedNames) for one in shell.ast_transformers):
        shell.ast_transformers.append(_RefuseDottedNames(shell.user_ns))


class _RefuseDottedNames(ast.NodeTransformer):
    """Replaces an assignment to an attribute of a parameter, or of an unknown name, by an error."""

    def __init__(self, namespace: dict[str, Any]):
        self.namespace = namespace

    def visit_Assign(self, node: ast.Assign) -> Any:
        dotted = ast.unparse(node.targets[0])
        root, *below = dotted.split(".")
        is_parameter = isinstance(self.namespace.get(root), dict | list | tuple | str | int | float | None)
        if CHECKED in self.namespace or not (below and dotted.replace(".", "").isidentifier() and is_parameter):
            return node
        message = f"{dotted}: {unknown_name(dotted) or what_to_type(dotted, node.value)}"
        raised = ast.parse(f"from vmae_lab.lab.config import RecipeError as _error\nraise _error({message!r}) from None").body
        return [ast.copy_location(line, node) for line in raised]


def what_to_type(dotted: str, value: ast.expr) -> str:
    """How a setting inside a section is given on a command line."""
    try:
        written = json.dumps(ast.literal_eval(value))
    except (ValueError, TypeError):
        written = ast.unparse(value)
    pair = shlex.quote(f"{{{dotted}: {written}}}")
    return (
        f"papermill's -p sets whole parameters, not a setting inside a section. Type -p override {pair}, or run the notebook "
        f"by `vmae-lab run NOTEBOOK -p {dotted} {shlex.quote(written)}`"
    )

"""Refuse `papermill -p pretrain.steps 3`, which adds the Python line `pretrain.steps = 3` to a notebook."""

import ast
import json
import shlex
import sys
from typing import Any

from vmae_lab.lab.config import CHECKED, unknown_parameter


def refuse_dotted_names() -> None:
    """Make lines such as `pretrain.steps = 3` raise a RecipeError with the right command, until the parameters are read.

    Call it in a cell before the parameters cell. Without it, such a line sets nothing, or raises an unclear Python error.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell and not any(isinstance(transformer, _RefuseDottedNames) for transformer in shell.ast_transformers):
        shell.ast_transformers.append(_RefuseDottedNames(shell.user_ns))


class _RefuseDottedNames(ast.NodeTransformer):
    """Replaces an assignment to an attribute of a parameter or of an unknown name with a RecipeError."""

    def __init__(self, namespace: dict[str, Any]):
        self.namespace = namespace

    def visit_Assign(self, node: ast.Assign) -> Any:
        dotted = ast.unparse(node.targets[0])
        root, _, setting = dotted.partition(".")
        is_parameter = isinstance(self.namespace.get(root), dict | list | tuple | str | int | float | None)
        if CHECKED in self.namespace or not (setting and dotted.replace(".", "").isidentifier() and is_parameter):
            return node
        message = f"{dotted}: {unknown_parameter(dotted.split('.')) or _right_command(dotted, node.value)}"
        raised = ast.parse(f"from vmae_lab.lab.config import RecipeError as _error\nraise _error({message!r}) from None").body
        return [ast.copy_location(line, node) for line in raised]


def _right_command(dotted: str, value: ast.expr) -> str:
    try:
        text = json.dumps(ast.literal_eval(value))
    except (ValueError, TypeError):
        text = ast.unparse(value)
    pair = shlex.quote(f"{{{dotted}: {text}}}")
    return (
        f"papermill's -p sets whole parameters, not a setting inside a section. Use -p override {pair}, or run "
        f"`vmae-lab run NOTEBOOK -p {dotted} {shlex.quote(text)}`"
    )

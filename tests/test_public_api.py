"""`import vmae_lab` has few names, which are loaded on first use and known to type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vmae_lab

SOURCE = Path(vmae_lab.__file__)


@pytest.mark.parametrize("name", vmae_lab.__all__)
def test_public_names_exist(name):
    assert name in dir(vmae_lab)
    assert getattr(vmae_lab, name) is not None
    assert getattr(vmae_lab, name) is getattr(vmae_lab, name)


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'VideoMAEV3'; the public names are SIZES"):
        _ = vmae_lab.VideoMAEV3
    assert not hasattr(vmae_lab, "train")


def test_type_checkers_see_the_same_names():
    """They read the imports below TYPE_CHECKING. At run time, a table is used."""
    block = next(node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    told = {line.module: {one.name for one in line.names} for line in block.body}
    assert told == {f"vmae_lab.{room}": set(names) for room, names in vmae_lab._MODULES.items()}
    assert set(vmae_lab.__all__) == {"__version__"}.union(*told.values())


def test_importing_it_loads_nothing_heavy():
    code = "import sys, vmae_lab; dir(vmae_lab); print(*({'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

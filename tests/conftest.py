"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def parity() -> Path:
    """Reference tensors of the official code, which only the project's own developers have beside the checkout."""
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip("no reference tensors: ../shared/parity is not part of a clone")
    return folder

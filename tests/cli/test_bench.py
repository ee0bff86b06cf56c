"""`vmae-lab bench`: the scripts there are, and one of them run."""

import pytest

from vmae_lab.cli import main


@pytest.fixture
def scripts(project):
    (project / "benchmarks").mkdir()
    (project / "benchmarks" / "fast.py").write_text('"""How fast.\n\nMore."""\n\nimport sys\n\nsys.exit(len(sys.argv))\n')
    (project / "benchmarks" / "small.py").write_text('"""How small."""\n')


def test_they_are_listed_with_their_first_line(scripts, capsys):
    assert main(["bench"]) == 0
    assert capsys.readouterr().out.splitlines() == ["fast   How fast.", "small  How small."]


def test_one_is_run_with_its_own_words_and_status(scripts):
    assert main(["bench", "small"]) == 0
    assert main(["bench", "fast", "--help", "x", "-p"]) == 4


def test_one_that_is_not_there_is_told_with_those_that_are(scripts, capsys):
    assert main(["bench", "slow"]) == 2
    assert "there are fast, small" in capsys.readouterr().err

"""The journal keeps every finished item of a process that was killed."""

from vmae_lab.utils.journal import append_to_journal, read_journal


def test_an_incomplete_line_is_lost_and_the_next_row_is_not(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == {}
    append_to_journal(path, "a", {"frames": 1})
    append_to_journal(path, "b", {"frames": 2})
    path.write_bytes(path.read_bytes()[:-5])
    assert read_journal(path) == {"a": {"frames": 1}}
    append_to_journal(path, "b", {"frames": 3})
    append_to_journal(path, "a", {"frames": 4})
    assert read_journal(path) == {"a": {"frames": 4}, "b": {"frames": 3}}
    assert len(path.read_text().splitlines()) == 4, "no empty lines"

"""The base class of errors that a user can fix, and how messages list many faults."""

from collections.abc import Sequence

SHOWN = 10  # names or faults that a message lists


class UserError(Exception):
    """An error that the user can fix: wrong input, or a problem of the machine.

    The message says what is wrong, where, and what to do. The command line prints it without a traceback and exits with
    `exit_status`.
    """

    exit_status = 2


def first_of(items: Sequence[str], separator: str = ", ", total: int | None = None) -> str:
    """Return the first ten names or faults as text, and how many more there are.

    `total` is the number of all of them if `items` has only the first ones.
    """
    shown = items[:SHOWN]
    rest = (len(items) if total is None else total) - len(shown)
    return separator.join([*shown, f"and {rest} more"] if rest else shown)

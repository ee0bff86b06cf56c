"""The base class of errors that a user can fix, and how messages list many faults."""

from collections.abc import Sequence

SHOWN = 10  # names or faults that a message lists


class UserError(Exception):
    """An error in what a user gave, or in the machine's state, whose message names the thing, its place and the remedy.

    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 2


def first_of(items: Sequence[str], separator: str = ", ", total: int | None = None) -> str:
    """Join the first ten of some names or faults for a message, and say how many more there are.

    `total` is their number if `items` holds only the first ones.
    """
    shown = items[:SHOWN]
    rest = (len(items) if total is None else total) - len(shown)
    return separator.join([*shown, f"and {rest} more"] if rest else shown)

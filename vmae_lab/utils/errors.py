"""The base class of errors that a user can fix."""


class UserError(Exception):
    """An error in what a user gave, or in the machine's state, whose message names the thing, its place and the remedy.

    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 2

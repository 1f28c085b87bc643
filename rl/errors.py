"""The errors that the command line distinguishes: bad input (exit 2), a failed run (exit 1), and everything else, which
is a bug and keeps its traceback."""


class InputError(ValueError):
    """A user's input cannot be used; the message says what was expected, what was given, and what to do."""


class MissingInput(InputError, FileNotFoundError):
    """A file or folder that a user named does not exist."""


class RunFailed(RuntimeError):
    """A run ended before its last step; `__cause__` is why, the message says how to resume."""

"""What the command line tells apart: a mistake in the input (exit 2), a run that failed (exit 1), and everything else,
which is a mistake in the program and keeps its traceback."""


class InputError(ValueError):
    """A user's input cannot be used; the message says what was expected, what came, and what to do."""


class MissingInput(InputError, FileNotFoundError):
    """A file or folder that a user named is not there."""


class RunFailed(RuntimeError):
    """A run ended before its last step; `__cause__` is why, the message says how to resume."""

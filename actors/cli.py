"""The command `isrl` with its verbs. Exit codes: 0 done, 1 failed, 2 bad config or input, 130 interrupted."""

import sys
import traceback
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from actors.commands.export import export
from actors.commands.plan import plan
from actors.commands.pretrain import pretrain
from actors.commands.report import report
from actors.commands.restore import restore
from actors.commands.scale import scale
from actors.commands.status import status
from actors.commands.stop import stop
from actors.commands.train import train
from rl.errors import InputError, RunFailed

FAILED, BAD_INPUT = 1, 2

app = typer.Typer(
    help="Online reinforcement learning for generative real-world image super-resolution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for verb in (train, status, scale, stop, plan, pretrain, restore, export, report):
    app.command()(verb)


def main() -> None:
    """Entry point: bad input gives one readable message; a failed run ends with one, after its traceback."""
    _find_modules_here()
    try:
        app()
    except InputError as error:
        _complain("error", error)
        sys.exit(BAD_INPUT)
    except RunFailed as error:
        traceback.print_exception(error.__cause__)
        _complain("failed", error)
        sys.exit(FAILED)


def _find_modules_here() -> None:
    """Let `type: my_file:MyPolicy` name a file in the current directory; Ray adds it to its workers' paths as well.

    It comes last on the path, so that a user's folder with the name of a package does not hide that package.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _complain(word: str, error: Exception) -> None:
    Console(stderr=True).print(f"[red]{word}[/red] {escape(str(error))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

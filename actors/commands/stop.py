"""`isrl stop`: the end of a running job."""

from typing import Annotated

import typer

from actors.commands import RunFolder


def stop(
    run_dir: RunFolder,
    wait: Annotated[bool, typer.Option("--wait", help="Return only when the run has ended.")] = False,
) -> None:
    """End a running job: it finishes and saves the step in progress, as after Ctrl-C. `isrl train ... --resume` goes on
    from there."""
    import time

    from actors.control import Request, ask, gone

    for line in ask(run_dir, Request({}, stop=True)):
        typer.echo(line)
    while wait and not gone(run_dir):
        time.sleep(0.5)

"""`isrl scale`: more or fewer members of a role of a running job."""

from typing import Annotated

import typer

from actors.commands import RunFolder


def scale(
    run_dir: RunFolder,
    roles: Annotated[
        list[str], typer.Argument(metavar="ROLE=N", help="Members wanted, for example rollout=3 reward.lpips=2.")
    ],
) -> None:
    """Give roles of a running job more or fewer processes.

    One that joins works when its model is loaded and its adapter echoed; one that leaves finishes its work first. `isrl
    status RUN` lists the roles.
    """
    from actors.control import Request, ask

    for line in ask(run_dir, Request(dict(map(_wanted, roles)))):
        typer.echo(line)


def _wanted(text: str) -> tuple[str, int]:
    role, _, count = text.partition("=")
    if not role or not count.isdecimal():
        raise typer.BadParameter(f"expected ROLE=N such as rollout=3, got '{text}'")
    return role, int(count)

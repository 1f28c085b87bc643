"""`isrl status`: who works in a running job, and on what."""

import time

from actors.commands import RunFolder

WIDE = 160
"""Columns where there is no terminal whose width counts."""


def status(run_dir: RunFolder) -> None:
    """Show a running job: step, last push, seconds per stage, every process with its state and adapter version, queues,
    and what was lost."""
    from rich.console import Console
    from rich.table import Table

    from actors.control import SILENT_S, read_status

    run, console = read_status(run_dir), Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    heard = time.time() - run.written_at
    late = f", last heard {heard:.0f} s ago: killed or hanging" if heard > SILENT_S else ""
    late = ", ended" if run.ended else late
    console.print(f"{run.run}: step {run.step} of {run.steps}, driver {run.pid} on {run.host}{late}")
    if run.pushed is not None:
        console.print(f"version {run.pushed} pushed in {run.push_s:.2f} s")
    if run.seconds:
        console.print("last step: " + ", ".join(f"{key} {seconds:.2f}" for key, seconds in run.seconds.items()))
    table = Table("role", "wanted", "queued", "member", "state", "calls", "answered", "age", "version", "failures")
    for role in run.roles:
        first = (role.name, str(role.wanted), str(role.queued))
        for member in role.members or (None,):
            if member is None:
                table.add_row(*first, "none", "", "", "", "", "", "")
                continue
            version = "" if member.version is None else str(member.version)
            figures = (str(member.calls), str(member.answered), _age(member.age_s), version, str(member.strikes))
            table.add_row(*first, member.name, member.state, *figures)
            first = ("", "", "")
    console.print(table)
    for line in (line for role in run.roles for line in role.lost):
        console.print(f"lost: {line}", markup=False)


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

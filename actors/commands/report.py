"""`isrl report`: the report of a run's folder."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder; the run may still be in progress.")],
) -> None:
    """Write RUN/report.md and its figures again."""
    from rl.evaluation.report import write_report

    typer.echo(str(write_report(run_dir)))

"""The verbs of `isrl`, one file each: its options, and the code of that verb alone.

Heavy packages are imported inside the functions, so that `--help` and refusals are instant.
"""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, for example configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Dotted overrides: train.steps=10 rewards.0.weight=2 run.dir=runs/a"),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a running job: its run.dir.")]

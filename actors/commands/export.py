"""`isrl export`: a trained adapter under the names of another tool."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="A run's folder, or an adapter: a file or a PEFT folder.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write, ending in .safetensors.")],
    form: Annotated[
        Literal["diffusers", "kohya", "comfyui"], typer.Option("--format", help="The tool to name the layers for.")
    ] = "diffusers",
) -> None:
    """Write a trained adapter for diffusers, kohya's scripts or ComfyUI. Its strength is folded into the weights: load
    the file at strength 1."""
    from rl.policies.lora_export import export_as

    typer.echo(str(export_as(source, form, out)))

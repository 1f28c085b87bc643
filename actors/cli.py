"""The command `isrl`. Exit codes: 0 done, 1 failed, 2 bad config or input, 130 interrupted."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rl.config.load import ConfigError

app = typer.Typer(
    help="Online reinforcement learning for generative real-world image super-resolution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console(stderr=True)
BAD_INPUT, INTERRUPTED = 2, 130

Config = Annotated[Path, typer.Argument(help="A YAML recipe, for example configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides: train.steps=10 rewards.0.weight=2 run.dir=runs/a")
]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of run.dir.")] = False,
) -> None:
    """Post-train a policy with Ray rollout actors, reward servers and a DeepSpeed learner.

    Writes run.dir/config.yaml, metrics.jsonl, eval.jsonl, checkpoints/, samples/, report.md and
    lora/pytorch_lora_weights.safetensors.
    """
    from actors.preflight import preflight
    from actors.run import run
    from rl.config.load import load_config

    settings = load_config(config, overrides or [])
    preflight(settings, resume=resume)
    outcome = run(settings, resume=resume)
    if outcome.interrupted:
        console.print(f"interrupted after step {outcome.steps}, saved; continue with --resume")
        raise typer.Exit(INTERRUPTED)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Check a recipe and print what it would start: processes, sizes, derived numbers. Starts nothing."""
    from actors.plan import plan_text
    from rl.config.load import load_config

    typer.echo(plan_text(load_config(config, overrides or [])))


@app.command()
def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Make a policy from photographs by supervised training (VAE, then flow matching), and score it."""
    from learner.pretrain import pretrain as make

    from rl.config.pretrain import load_pretrain_config

    make(load_pretrain_config(config, overrides or []))


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image or a folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="An image file, or a folder.")],
    lora: Annotated[Path | None, typer.Option(help="A trained adapter, run.dir/lora/*.safetensors.")] = None,
    seed: Annotated[int, typer.Option(help="Noise seed; another seed is another candidate.")] = 0,
    policy: Annotated[str, typer.Option(help="Embedded preset or a local diffusers folder.")] = "mini",
    scale: Annotated[int, typer.Option(min=1, max=8)] = 4,
    steps: Annotated[int, typer.Option(min=1)] = 10,
    shift: Annotated[str, typer.Option(help="Resolution shift: a number, or flux2.")] = "1.0",
    colour: Annotated[str, typer.Option(help="Colour alignment: wavelet, adain or none.")] = "wavelet",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compare: Annotated[bool, typer.Option(help="Also write bicubic beside the result.")] = False,
) -> None:
    """Super-resolve an image or a folder, with or without a trained adapter."""
    from actors.restore import RestoreJob

    job = RestoreJob(lora, seed, policy, scale, steps, shift, colour, device, compare)
    for written in job.run(source, target):
        typer.echo(str(written))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run's folder, also of a run that is still going.")]) -> None:
    """Write run_dir/report.md with its plots again."""
    from rl.evaluation.report import write_report

    typer.echo(str(write_report(run_dir)))


def main() -> None:
    """Entry point: a mistake in the input is one readable message and exit code 2."""
    try:
        app()
    except (ConfigError, FileNotFoundError) as error:
        console.print(f"[red]error[/red] {error}", highlight=False)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

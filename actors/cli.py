"""The command `isrl`. Exit codes: 0 done, 1 failed, 2 bad config or input, 130 interrupted."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from rl.errors import InputError, RunFailed

app = typer.Typer(
    help="Online reinforcement learning for generative real-world image super-resolution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console(stderr=True)
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

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
    from rl.config.load import load_config

    settings = load_config(config, overrides or [])
    preflight(settings, resume=resume)

    # Ray is imported from here on, when nothing is left to refuse
    from actors.run import run

    outcome = run(settings, resume=resume)
    if outcome.interrupted:
        console.print(f"interrupted after step {outcome.steps}, saved; continue with --resume")
        raise typer.Exit(INTERRUPTED)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Check a recipe of `train` or `pretrain` and print what it would start: processes, sizes, derived numbers, what is
    missing here. Starts nothing."""
    from rl.config.load import load_config, read_recipe

    given = overrides or []
    if "photos" in read_recipe(config, given):
        from actors.plan_pretrain import pretrain_plan_text
        from rl.config.pretrain import load_pretrain_config

        typer.echo(pretrain_plan_text(load_pretrain_config(config, given)))
        return
    from actors.plan import plan_text

    typer.echo(plan_text(load_config(config, given)))


@app.command()
def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Make a policy by supervised training and score it on held-out photographs: Flux2SR (VAE, then flow matching) or
    NAOSD (a one-step student of a multi-step model). NAOSD's student, when interrupted, goes on by the same command."""
    from learner.pretraining import pretrain as make
    from rl.config.pretrain import load_pretrain_config

    make(load_pretrain_config(config, overrides or []), " ".join([str(config), *(overrides or [])]))


@app.command()
def restore(  # noqa: PLR0913 - one parameter per option
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image or a folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="An image file, or a folder.")],
    lora: Annotated[Path | None, typer.Option(help="A trained adapter, run.dir/lora/*.safetensors.")] = None,
    seed: Annotated[int, typer.Option(help="Noise seed; another seed is another candidate.")] = 0,
    kind: Annotated[Literal["flux2sr", "naosd"], typer.Option("--type", help="Kind of policy.")] = "flux2sr",
    policy: Annotated[str, typer.Option(help="Embedded preset or a local diffusers folder.")] = "mini",
    scale: Annotated[int, typer.Option(min=1, max=8)] = 4,
    steps: Annotated[int, typer.Option(min=1)] = 10,
    shift: Annotated[str, typer.Option(help="Resolution shift: a number, or flux2.")] = "1.0",
    t_add: Annotated[
        int | None, typer.Option(help="naosd: noise level, default 250; higher is more detail, less fidelity.")
    ] = None,
    merge: Annotated[list[Path] | None, typer.Option(help="naosd: a published .pkl to merge; repeatable.")] = None,
    prompt: Annotated[str, typer.Option(help="One text for all images, for a policy with a text encoder.")] = "",
    prompt_path: Annotated[Path | None, typer.Option(help="A folder with <image name>.txt for every image.")] = None,
    tile: Annotated[
        int | None, typer.Option(min=64, help="Tile side in output pixels; default: what the policy was trained at.")
    ] = None,
    colour: Annotated[Literal["wavelet", "adain", "none"], typer.Option(help="Colour alignment.")] = "wavelet",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    compare: Annotated[bool, typer.Option(help="Also write bicubic beside the result.")] = False,
) -> None:
    """Super-resolve an image or a folder, with or without a trained adapter."""
    from actors.restore import RestoreJob

    job = RestoreJob(
        lora, seed, kind, policy, scale, steps, shift, t_add, merge or [], prompt, prompt_path, tile, colour, device,
        compare,
    )  # fmt: skip
    for written in job.run(source, target):
        typer.echo(str(written))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run's folder, also of a run that is still going.")]) -> None:
    """Write run_dir/report.md with its plots again."""
    from rl.evaluation.report import write_report

    typer.echo(str(write_report(run_dir)))


def main() -> None:
    """Entry point: a mistake in the input is one readable message; a failed run ends with one, after its traceback."""
    try:
        app()
    except InputError as error:
        _complain("error", error)
        sys.exit(BAD_INPUT)
    except RunFailed as error:
        traceback.print_exception(error.__cause__)
        _complain("failed", error)
        sys.exit(FAILED)


def _complain(word: str, error: Exception) -> None:
    console.print(f"[red]{word}[/red] {escape(str(error))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

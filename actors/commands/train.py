"""`isrl train`: an online or offline run, from the preflight checks to the exit code."""

from typing import Annotated

import typer

from actors.commands import Overrides, Recipe
from actors.interrupts import INTERRUPTED

RESUME = "Resume from the newest checkpoint of run.dir; where there is none yet, start anew."


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help=RESUME)] = False,
) -> None:
    """Post-train a policy: `kind: online` with Ray rollout actors, reward servers and a DeepSpeed learner, `kind:
    offline` with the learner alone on pools of candidates.

    Writes run.dir/config.yaml, metrics.jsonl, checkpoints/, report.md and lora/pytorch_lora_weights.safetensors; an
    online run also eval.jsonl and samples/.
    """
    from actors.preflight import preflight
    from rl.config.load import load_training_config

    config = load_training_config(recipe, overrides or [])
    preflight(config, resume=resume)

    # import Ray only now, after everything that can be refused
    from actors.run import run

    outcome = run(config, resume=resume)
    if outcome.interrupted:
        typer.echo(f"interrupted after step {outcome.steps}, which is saved; resume with --resume", err=True)
        raise typer.Exit(INTERRUPTED)

"""What a run reports as it runs: JSON lines are always written, everything else is chosen here."""

from typing import Annotated, Literal

from pydantic import Field

from rl.config.base import ReadWith, Section


class MonitorConfig(Section):
    """W&B, console progress and how often a sample sheet is drawn."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """`offline` needs no key and no network: upload later with `wandb sync`. `online` reads WANDB_API_KEY."""
    project: Annotated[str, Field(min_length=1), ReadWith("wandb", "offline", "online")] = "isrl"
    entity: Annotated[str | None, ReadWith("wandb", "offline", "online")] = None
    """W&B team; None: the account of the API key."""
    sample_every: int = Field(10, ge=1)
    """Steps between two sample sheets (PNG and JSON, and a W&B table where W&B is on)."""
    progress: bool = True
    """A live progress line on a terminal, one plain line per step elsewhere."""

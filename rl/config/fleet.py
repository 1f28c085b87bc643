"""How long a run waits for its processes, and what it does with one that fails."""

from pydantic import Field

from rl.config.base import Section


class FleetSection(Section):
    """Processes that sample, score and tag may die, hang, join and leave while the run goes on."""

    join_deadline_s: float = Field(1800.0, gt=0)
    """From asking Ray for a process until it has loaded its model and may work."""
    empty_deadline_s: float = Field(1800.0, gt=0)
    """How long a role may be without a single member before the run ends; meanwhile its work waits."""
    rejoin_after_s: float = Field(5.0, ge=0)
    """Pause before a replacement starts after one that did not join; doubles with each that fails, up to 16 times."""
    quarantine_s: float = Field(10.0, ge=0)
    """Pause of a member that failed while others succeeded; doubles with each failure in a row."""
    strikes: int = Field(3, ge=1)
    """Such failures in a row, after which a member is replaced."""

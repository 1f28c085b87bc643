"""What became of every group: each slot of each step is trained exactly once, whatever died in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl.identity import Identity


@dataclass
class Ledger:
    """Groups in flight, dropped and trained; every checkpoint holds it."""

    groups_per_step: int
    steps: int = 0
    """Trained."""
    attempts: dict[tuple[int, int], int] = field(default_factory=dict)
    """(step, slot) -> attempt to be issued next, for slots not yet trained whose earlier attempts were dropped."""
    pending: set[int] = field(default_factory=set)
    """Ordinals issued, and neither trained nor dropped."""
    dropped: list[int] = field(default_factory=list)

    def issue(self, step: int, slot: int) -> int:
        """The ordinal of a slot's current attempt; the same again if nothing became of it."""
        if step < self.steps:
            raise ValueError(f"ledger: step {step} is trained; expected a step from {self.steps} on")
        ordinal = Identity(step, slot, self.attempts.get((step, slot), 0)).ordinal(self.groups_per_step)
        self.pending.add(ordinal)
        return ordinal

    def drop(self, ordinal: int) -> None:
        """A server failed permanently on it; it never reaches an advantage, and its slot gets another attempt."""
        group = Identity.of(ordinal, self.groups_per_step)
        self.pending.remove(ordinal)
        self.attempts[group.step, group.slot] = group.attempt + 1
        self.dropped.append(ordinal)

    def train(self, ordinals: Sequence[int]) -> None:
        """A step was trained on these groups.

        Raises:
            ValueError: they are not one pending group for each slot of the next step.
        """
        groups = [Identity.of(ordinal, self.groups_per_step) for ordinal in ordinals]
        expected = [(self.steps, slot) for slot in range(self.groups_per_step)]
        got = sorted((group.step, group.slot) for group in groups)
        if got != expected or not self.pending.issuperset(ordinals):
            raise ValueError(f"ledger: expected one pending group for each of {expected}, got {groups}")
        self.pending.difference_update(ordinals)
        for where in expected:
            self.attempts.pop(where, None)
        self.steps += 1

    @property
    def trained(self) -> int:
        """Groups."""
        return self.steps * self.groups_per_step

    def to_json(self) -> dict[str, object]:
        """What a resumed run needs: pending groups are issued again, as the same."""
        return {
            "groups_per_step": self.groups_per_step,
            "steps": self.steps,
            "attempts": [[step, slot, attempt] for (step, slot), attempt in sorted(self.attempts.items())],
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Ledger":
        """Continue from `to_json`."""
        attempts = {(step, slot): attempt for step, slot, attempt in state["attempts"]}
        return cls(state["groups_per_step"], state["steps"], attempts, dropped=list(state["dropped"]))

"""Who a group is: its step, its slot in the step, and its attempt. Image, degradation, noise seeds, stochastic steps
and ledger entry are functions of these three alone, so no failure of another group can change them.

    ordinal = attempt 2^40 + step groups_per_step + slot

Attempts 0 are the stream of LR images in order. A further attempt takes an image from far along the stream: which one
does not depend on what else failed.
"""

from dataclasses import dataclass

_STRIDE = 1 << 40


@dataclass(frozen=True, order=True)
class Identity:
    """One group of a run."""

    step: int
    slot: int
    attempt: int = 0

    def ordinal(self, groups_per_step: int) -> int:
        """Its position in the stream of LR images."""
        position = self.step * groups_per_step + self.slot
        if not 0 <= self.slot < groups_per_step or not 0 <= position < _STRIDE or self.attempt < 0:
            raise ValueError(f"{self}: expected slot 0 to {groups_per_step - 1}, step and attempt 0 or more")
        return self.attempt * _STRIDE + position

    @staticmethod
    def of(ordinal: int, groups_per_step: int) -> "Identity":
        """The inverse of `ordinal`."""
        attempt, position = divmod(ordinal, _STRIDE)
        return Identity(*divmod(position, groups_per_step), attempt)

"""Which groups were issued and what became of them: no LR image is skipped, none is trained on twice."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """Ordinals in flight, and what was trained or dropped; every checkpoint holds the whole state."""

    next_ordinal: int = 0
    pending: list[int] = field(default_factory=list)
    """Issued but neither trained on nor dropped, in order of issue."""
    unissued: list[int] = field(default_factory=list)
    """Pending when the run stopped; reissued before any new ordinal."""
    trained: int = 0
    dropped: list[int] = field(default_factory=list)

    def issue(self) -> int:
        """The next ordinal of the stream."""
        if self.unissued:
            ordinal = self.unissued.pop(0)
        else:
            ordinal = self.next_ordinal
            self.next_ordinal += 1
        self.pending.append(ordinal)
        return ordinal

    def drop(self, ordinal: int) -> None:
        """Its tagger or a reward failed permanently; it never reaches an advantage."""
        self.pending.remove(ordinal)
        self.dropped.append(ordinal)

    def train(self, ordinals: list[int]) -> None:
        """A batch was trained on."""
        for ordinal in ordinals:
            self.pending.remove(ordinal)
        self.trained += len(ordinals)

    def to_json(self) -> dict[str, object]:
        """State after a finished step; pending ordinals will be reissued."""
        return {
            "next_ordinal": self.next_ordinal,
            "unissued": sorted(self.pending + self.unissued),
            "trained": self.trained,
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Ledger":
        """Continue from `to_json`."""
        return cls(**copy.deepcopy(dict(state)))

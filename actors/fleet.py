"""Who works in this run, role by role. Pools, pushes, evaluations and metrics ask here; nobody else keeps handles."""

import asyncio
from collections.abc import Iterable, Iterator

from actors.role import Counts, Role
from rl.metrics import Key, Value


class Fleet:
    """All roles whose membership may change during a run, by name."""

    def __init__(self, roles: Iterable[Role]) -> None:
        self._roles = {role.name: role for role in roles}

    def __getitem__(self, name: str) -> Role:
        return self._roles[name]

    def __iter__(self) -> Iterator[Role]:
        return iter(self._roles.values())

    async def open(self) -> None:
        """Start every role; their members load at the same time."""
        await asyncio.gather(*(role.open() for role in self))

    def values(self) -> dict[str, Value]:
        """Under the keys of the metrics table; resets the counts."""
        values: dict[str, Value] = {}
        for role in self:
            counts, role.counts = role.counts, Counts()
            values[Key.FLEET_READY.of(role.name)] = float(len(role.ready))
            values[Key.FLEET_JOINED.of(role.name)] = float(counts.joined)
            values[Key.FLEET_LOST.of(role.name)] = float(counts.lost)
        return values

    def close(self) -> None:
        for role in self:
            role.close()

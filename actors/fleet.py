"""Who works in this run, role by role. Pools, pushes, evaluations and metrics ask here; nobody else keeps handles."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from actors.control import MemberStatus, RoleStatus
from actors.role import Counts, Role
from rl.errors import InputError
from rl.metrics import Key, Value

LOSSES_SHOWN = 5


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

    def resize(self, name: str, wanted: int) -> str:
        """Have so many members from now on; says what changes.

        Raises:
            InputError: no such role, or a number below 1.
        """
        if name not in self._roles:
            raise InputError(f"role {name}: expected one of {', '.join(self._roles)}")
        if wanted < 1:
            raise InputError(f"role {name}: expected at least 1 member, got {wanted}; isrl stop ends a run")
        role = self._roles[name]
        before, line = role.wanted, f"{name}: {role.wanted} -> {wanted} members"
        role.resize(wanted)
        return f"{line}; those that leave finish their work first" if wanted < before else line

    def status(self, queued: Mapping[str, int]) -> tuple[RoleStatus, ...]:
        """Every role with its members; `queued` by role."""
        now = asyncio.get_running_loop().time()
        return tuple(
            RoleStatus(
                role.name, role.wanted, queued.get(role.name, 0),
                tuple(
                    MemberStatus(m.name, m.state, m.calls, m.answered, round(now - m.since, 1), m.version, m.strikes)
                    for m in role.members
                ),
                tuple(role.lost[-LOSSES_SHOWN:]),
            )
            for role in self
        )  # fmt: skip

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

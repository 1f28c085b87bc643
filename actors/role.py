"""The members of one role, now: processes that join, work, leave and are lost while the run goes on.

    start ──▶ joining ──greet──▶ ready ──▶ leaving ──▶ left
                 │                 │
                 └──────▶ lost ◀───┘     a lost one is dismissed, and another is started in its place

A member gets work only after it was greeted: its model is loaded and, if it samples, its adapter echoed. Nobody else
keeps handles: pools, pushes, evaluations and metrics ask here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ray.exceptions import RayError

from actors.deadline import reason
from actors.member import Deadline, Member, MemberLost
from actors.tasks import Alarm, Tasks
from rl.config.fleet import FleetSection

MAX_BACKOFF = 16


class RoleEmpty(RuntimeError):
    """No process of a role is left and none could join."""


class NotGreeted(RuntimeError):
    """A process cannot be used as a member of its role; the message says why."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a role's processes are made.

    Args:
        name: `rollout`, `reward.NAME`, `tagger.SECTION`, `data`.
        count: members wanted at the start.
        start: asks Ray for one more process and returns its handle at once.
        dismiss: ends a process, whatever it is doing.
        slots: calls in flight per member; more than `concurrency` of them wait in the process's own queue.
        concurrency: calls that a process answers at the same time.
    """

    name: str
    count: int
    start: Callable[[], Any]
    dismiss: Callable[[Any], None]
    slots: int = 1
    concurrency: int = 1


@dataclass
class Counts:
    """Since the last step was logged."""

    joined: int = 0
    lost: int = 0


Greeting = Callable[[Member, Any], Awaitable[None]]
"""A member and what its `ready` answered."""


@dataclass
class Role:
    """The members of one role.

    Args:
        greet: what a new member has to do before it may work, beyond loading its model.
    """

    recipe: Recipe
    settings: FleetSection
    alarm: Alarm
    greet: Greeting | None = None
    say: Callable[[str], None] = lambda line: print(line, flush=True)
    members: list[Member] = field(default_factory=list)
    """Those that join, are ready or are leaving."""
    counts: Counts = field(default_factory=Counts)
    lost: list[str] = field(default_factory=list)
    """One line per member lost."""

    def __post_init__(self) -> None:
        self.name = self.recipe.name
        self.wanted = self.recipe.count
        self._serial = 0
        self._failed_joins = 0
        self._opened = False
        self._empty: asyncio.TimerHandle | None = None
        self._tasks = Tasks(self.alarm)
        self._listeners: list[Callable[[], None]] = []

    def listen(self, changed: Callable[[], None]) -> None:
        """`changed` is called whenever a member may have become free."""
        self._listeners.append(changed)

    @property
    def ready(self) -> list[Member]:
        return [member for member in self.members if member.state == "ready"]

    async def open(self) -> None:
        """Start the wanted members and wait until each has joined.

        Raises:
            MemberLost, RayError, NotGreeted: one cannot load or be greeted, or died while it loaded again and again.
        """
        await asyncio.gather(*(self._first() for _ in range(self.wanted)))
        self._opened = True
        self._refill()

    def adopt(self, handles: Iterable[Any]) -> None:
        """Take processes that are loaded already, in place of `open`."""
        for handle in handles:
            self._member(handle).state = "ready"
        self._opened = True

    def free(self, avoid: Iterable[str] = ()) -> Member | None:
        """The ready member with the fewest calls that has a slot; one outside of `avoid`, unless there is no other
        ready member to wait for."""
        ready, names = self.ready, set(avoid)
        untried = [member for member in ready if member.name not in names] or ready
        now = asyncio.get_running_loop().time()
        awake = [member for member in untried if member.rests_until <= now] or untried
        able = [member for member in awake if member.calls < self.recipe.slots]
        return min(able, key=lambda member: member.calls) if able else None

    def release(self, member: Member) -> None:
        """A slot is free again."""
        member.calls -= 1
        if member.state == "leaving" and member.calls == 0:
            self._remove(member, "left", "resized")
        self._changed()

    def lose(self, member: Member, why: str) -> None:
        """Dismiss a member that died, hung or failed too often, and start another."""
        if member.state in ("lost", "left"):
            return
        self.counts.lost += 1
        self.lost.append(f"{member.name}: {why}")
        self.say(f"{member.name} is lost: {why}")
        self._remove(member, "lost", why)
        self._refill()
        for other in self.ready:
            if other.calls == 0:
                self._tasks.start(self._check(other))

    def praise(self, member: Member) -> None:
        """It answered."""
        member.answered += 1
        member.strikes, member.rests_until = 0, 0.0

    def blame(self, member: Member, why: str) -> None:
        """It failed on what others may do well: it rests, then it is replaced. The only member goes on."""
        if len(self.ready) < 2:
            return
        member.strikes += 1
        if member.strikes >= self.settings.strikes:
            self.lose(member, f"{member.strikes} failures in a row while others work, the last: {why}")
            return
        rest = self.settings.quarantine_s * 2 ** (member.strikes - 1)
        loop = asyncio.get_running_loop()
        member.rests_until = loop.time() + rest
        loop.call_later(rest, self._changed)

    def resize(self, wanted: int) -> None:
        """Have `wanted` members from now on; those that leave finish their calls first."""
        self.wanted = wanted
        staying = [member for member in self.members if member.state != "leaving"]
        for member in reversed(staying[wanted:]):
            if member.state == "joining" or member.calls == 0:
                self._remove(member, "left", "resized")
            else:
                member.state = "leaving"
        self._refill()

    def close(self) -> None:
        """Stop waiting for members. The processes are left to whoever ends Ray."""
        self._tasks.close()
        if self._empty is not None:
            self._empty.cancel()

    def _start(self) -> Member:
        return self._member(self.recipe.start())

    def _member(self, handle: Any) -> Member:
        member = Member(f"{self.name}-{self._serial}", handle, self.recipe.concurrency)
        self._serial += 1
        self.members.append(member)
        return member

    async def _first(self) -> None:
        """A process that dies while it loads is started again, within the deadline; one whose own code fails is not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.settings.join_deadline_s
        for deaths in count():
            member = self._start()
            try:
                return await self._admit(member)
            except MemberLost as loss:
                if loss.unfit or loop.time() >= until:
                    raise
                self.lose(member, loss.why)
                await asyncio.sleep(self._pause(deaths))

    def _pause(self, failures: int) -> float:
        return self.settings.rejoin_after_s * min(2.0**failures, MAX_BACKOFF)

    async def _admit(self, member: Member) -> None:
        """Wait until it is loaded, greet it, and let it work."""
        deadline = Deadline(self.settings.join_deadline_s, f"start of {member.name}", "fleet.join_deadline_s")
        answer = await member.call(lambda handle: handle.ready.remote(), deadline)
        if self.greet is not None:
            await self.greet(member, answer)
        if member.state == "joining":
            member.state = "ready"
            self.counts.joined += 1
            self._failed_joins = 0
            self._changed()

    async def _replace(self) -> None:
        """One more member; another in its place after a pause if it cannot join."""
        member = self._start()
        try:
            await self._admit(member)
        except (RayError, MemberLost, NotGreeted) as error:
            pause = self._pause(self._failed_joins)
            self._failed_joins += 1
            if member.state in ("lost", "left"):
                return
            self._remove(member, "lost", _why(error))
            self.lost.append(f"{member.name}: did not join: {_why(error)}")
            self.say(f"{member.name} did not join: {_why(error)}; another starts in {pause:g} s")
            await asyncio.sleep(pause)
            self._refill()

    async def _check(self, member: Member) -> None:
        """Where one died others may have died with it, and those without work have not noticed."""
        member.calls += self.recipe.slots
        deadline = Deadline(self.settings.join_deadline_s, f"answer of {member.name}", "fleet.join_deadline_s")
        try:
            await member.call(lambda handle: handle.ready.remote(), deadline)
        except (RayError, MemberLost) as error:
            self.lose(member, _why(error))
        finally:
            member.calls -= self.recipe.slots
            self._changed()

    def _refill(self) -> None:
        staying = sum(member.state != "leaving" for member in self.members)
        if self._opened:
            for _ in range(self.wanted - staying):
                self._tasks.start(self._replace())

    def _remove(self, member: Member, state: Any, why: str) -> None:
        member.leave(state, why)
        self.members.remove(member)
        self.recipe.dismiss(member.handle)
        self._changed()

    def _changed(self) -> None:
        self._watch_the_empty()
        for listener in self._listeners:
            listener()

    def _watch_the_empty(self) -> None:
        """Work of a role without members waits, but not for ever."""
        if self.ready or not self._opened or self.wanted == 0:
            if self._empty is not None:
                self._empty.cancel()
                self._empty = None
        elif self._empty is None:
            seconds = self.settings.empty_deadline_s
            self.say(f"{self.name}: no member is left; its work waits up to {seconds:g} s for one to join")
            self._empty = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        last = self.lost[-1] if self.lost else "none was ever lost"
        self.alarm.ring(
            RoleEmpty(
                f"role {self.name}: expected at least one member, had none for {self.settings.empty_deadline_s:g} s; "
                f"the last loss: {last}. See that line's process in Ray's logs, or raise fleet.empty_deadline_s"
            )
        )


def _why(error: BaseException) -> str:
    return error.why if isinstance(error, MemberLost) else reason(error)

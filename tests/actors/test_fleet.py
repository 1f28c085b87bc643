"""Who pays when a process dies, hangs or fails, and who takes its place. Time is virtual, processes are coroutines."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from virtual_time import virtually

from actors.member import Deadline, Member, MemberLost
from actors.pool import GroupFailed
from actors.role import RoleEmpty
from actors.scoring import RewardPool
from actors.tasks import Alarm
from rewards.base import RewardError
from rewards.sections import PyiqaSection
from rl.types import RewardColumn

RoleOf = Callable[..., Any]


class Replica:
    """A reward server that answers after `seconds`, one call after the other, until it is dismissed."""

    def __init__(self, answer: Callable[[int], Any] | None = None, seconds: float = 1.0, loads: float = 1.0) -> None:
        self.asked: list[int] = []
        self._answer = answer or (lambda ordinal: RewardColumn(ordinal, "mine", np.array([1.0, float(ordinal)]), 0.5))
        self._seconds, self._loads, self._turn = seconds, loads, asyncio.Lock()
        self.score = SimpleNamespace(remote=self._score)
        self.ready = SimpleNamespace(remote=lambda: asyncio.sleep(self._loads))

    async def _score(self, count: int, *carriers: int) -> list[Any]:
        async with self._turn:
            self.asked += carriers[:count]
            await asyncio.sleep(self._seconds)
            return [self._answer(ordinal) for ordinal in carriers[:count]]


def dead(_: int) -> Any:
    raise ActorDiedError


def broken(_: int) -> Any:
    raise RewardError("mine", "out of memory")


def never(_: int) -> Any:
    raise AssertionError("a hanging replica does not answer")


def pool_of(role: Any, **fields: Any) -> RewardPool:
    return RewardPool(PyiqaSection.model_validate({"name": "mine", "type": "pyiqa", "retries": 2, **fields}), role)


async def scored(pool: RewardPool, count: int = 8) -> list[Any]:
    """Columns or errors of groups 0, 1, ..."""
    return await asyncio.gather(*(pool.score(k, k, k) for k in range(count)), return_exceptions=True)


def columns(results: list[Any]) -> list[int]:
    return [result.ordinal for result in results if isinstance(result, RewardColumn)]


def test_one_of_two_replicas_dead_costs_no_group(role_of: RoleOf) -> None:
    """It was called once; its groups go to the other, and a replacement joins and works."""

    async def scenario() -> None:
        gone, well, new, dismissed = Replica(dead, seconds=0.1), Replica(seconds=4), Replica(seconds=4), []
        role = role_of("reward.mine", gone, well, more=[new], dismissed=dismissed)
        results = await scored(pool_of(role))
        assert columns(results) == [*range(8)]
        assert (len(gone.asked), dismissed) == (1, [gone])
        assert new.asked and [member.name for member in role.ready] == ["reward.mine-1", "reward.mine-2"]
        assert (role.counts.lost, role.counts.joined) == (1, 1)

    virtually(scenario())


def test_a_replica_that_fails_while_others_succeed_pays_itself(role_of: RoleOf) -> None:
    """Three failures in a row, with longer rests in between, and it is replaced; no group is dropped."""

    async def scenario() -> None:
        bad, well, new, dismissed = Replica(broken, seconds=0.1), Replica(seconds=3), Replica(seconds=3), []
        settings = {"strikes": 3, "quarantine_s": 10}
        role = role_of("reward.mine", bad, well, more=[new], dismissed=dismissed, settings=settings)
        pool = pool_of(role, retries=1)
        rests: list[float] = []
        for _ in range(5):
            assert columns(await scored(pool)) == [*range(8)]
            first = next((m for m in role.ready if m.handle is bad), None)
            rests += [] if first is None else [first.rests_until]
        assert (len(bad.asked), dismissed) == (3, [bad])
        assert rests[0] == pytest.approx(0.1 + 10 + 0.1 + 20), "two failures, two rests"
        assert role.lost[0].endswith("others work, the last: out of memory")

    virtually(scenario())


def test_a_group_that_fails_everywhere_is_dropped_alone(role_of: RoleOf) -> None:
    """Nobody is lost for it, and its neighbours are scored."""

    def poisoned(ordinal: int) -> Any:
        if ordinal == 3:
            raise RewardError("mine", "not finite", ordinals=(3,))
        return RewardColumn(ordinal, "mine", np.zeros(2), 0.5)

    async def scenario() -> None:
        replicas = [Replica(poisoned), Replica(poisoned)]
        role = role_of("reward.mine", *replicas)
        results = await scored(pool_of(role, batch_groups=4))
        assert columns(results) == [0, 1, 2, 4, 5, 6, 7]
        assert isinstance(results[3], GroupFailed) and "failed 3 times on group 3: not finite" in str(results[3])
        assert role.counts.lost == 0 and len(role.ready) == 2

    virtually(scenario())


def test_a_group_that_kills_is_dropped_after_its_attempts(role_of: RoleOf) -> None:
    """Its neighbours in the first call lose one attempt: from then on it goes alone."""

    def deadly(ordinal: int) -> Any:
        if ordinal == 3:
            raise ActorDiedError
        return RewardColumn(ordinal, "mine", np.zeros(2), 0.5)

    async def scenario() -> None:
        role = role_of("reward.mine", Replica(deadly), more=(Replica(deadly) for _ in range(9)))
        results = await scored(pool_of(role, batch_groups=8, retries=1))
        assert columns(results) == [0, 1, 2, 4, 5, 6, 7]
        assert isinstance(results[3], GroupFailed) and role.counts.lost == 2

    virtually(scenario())


def test_a_hanging_replica_is_lost_at_its_deadline_with_its_call(role_of: RoleOf) -> None:
    """It is dismissed 20 s after its turn began; the group that waited behind it pays nothing."""

    async def scenario() -> None:
        stuck, new, dismissed = Replica(never, seconds=10**6), Replica(), []
        role = role_of("reward.mine", stuck, more=[new], dismissed=dismissed, slots=2)
        results = await scored(pool_of(role, deadline_s=20, retries=1), 2)
        assert columns(results) == [0, 1] and dismissed == [stuck]
        assert "reward.mine-0: scoring: no answer within 20 s" in role.lost[0]
        assert asyncio.get_running_loop().time() == pytest.approx(20 + 1 + 2), "deadline, load, two calls"
        assert sorted(new.asked) == [0, 1]

    virtually(scenario())


def test_a_deadline_counts_from_the_calls_turn(role_of: RoleOf) -> None:
    """Five calls of 8 s wait for one another on one process, under a deadline of 10 s."""

    async def scenario() -> None:
        role = role_of("reward.mine", Replica(seconds=8), slots=5)
        assert columns(await scored(pool_of(role, deadline_s=10), 5)) == [*range(5)]
        assert asyncio.get_running_loop().time() == pytest.approx(40)

    virtually(scenario())


def test_a_scorer_with_several_slots_answers_several_calls_at_once(role_of: RoleOf) -> None:
    async def scenario() -> None:
        slow = SimpleNamespace(score=SimpleNamespace(remote=Replica(seconds=0)._score))

        async def score(count: int, *carriers: int) -> Any:
            await asyncio.sleep(30)
            return await slow.score.remote(count, *carriers)

        role = role_of("reward.mine", SimpleNamespace(score=SimpleNamespace(remote=score)), slots=32, concurrency=32)
        assert columns(await scored(pool_of(role, deadline_s=31), 64)) == [*range(64)]
        assert asyncio.get_running_loop().time() == pytest.approx(60)

    virtually(scenario())


@pytest.mark.parametrize("answer", [7, None, [1, 2], {}])
def test_an_answer_of_another_kind_is_a_failure_by_name(role_of: RoleOf, answer: Any) -> None:
    async def scenario() -> None:
        async def score(*_: Any) -> Any:
            return answer

        role = role_of("reward.mine", SimpleNamespace(score=SimpleNamespace(remote=score)))
        (result,) = await scored(pool_of(role), 1)
        assert isinstance(result, GroupFailed) and "failed 3 times on group 0: expected" in str(result)

    virtually(scenario())


def test_columns_of_other_groups_are_refused(role_of: RoleOf) -> None:
    async def scenario() -> None:
        role = role_of("reward.mine", Replica(lambda ordinal: RewardColumn(ordinal + 1, "mine", np.zeros(2), 0.5)))
        (result,) = await scored(pool_of(role), 1)
        assert "expected columns of groups [0], got [1]" in str(result)

    virtually(scenario())


def test_an_error_while_sending_ends_the_run_and_nobody_waits(role_of: RoleOf) -> None:
    """Nobody foresaw it, so nobody may go on: the alarm ends what waits, with that error."""

    async def scenario() -> None:
        alarm = Alarm()
        role = role_of("reward.mine", SimpleNamespace(), alarm=alarm)
        with pytest.raises(AttributeError, match="no attribute 'score'"):
            await alarm.guard(scored(pool_of(role)))

    virtually(scenario())


def test_a_role_without_members_waits_and_then_ends_the_run(role_of: RoleOf) -> None:
    """Twice: the replacement comes in time, and it does not."""

    async def scenario(loads: float) -> tuple[list[Any], float]:
        alarm, settings = Alarm(), {"empty_deadline_s": 60, "join_deadline_s": 10**6}
        new = Replica(loads=loads)
        role = role_of("reward.mine", Replica(dead), more=[new], alarm=alarm, settings=settings)
        return await alarm.guard(scored(pool_of(role))), asyncio.get_running_loop().time()

    results, seconds = virtually(scenario(59))
    assert columns(results) == [*range(8)] and seconds == pytest.approx(1 + 59 + 8)
    with pytest.raises(
        RoleEmpty, match=r"role reward.mine: expected at least one member, had none for 60 s; the last lo"
    ):
        virtually(scenario(61))


def test_a_member_that_does_not_join_is_tried_again_after_longer_and_longer_pauses(role_of: RoleOf) -> None:
    async def scenario() -> None:
        started: list[float] = []

        class Stillborn(Replica):
            def __init__(self) -> None:
                super().__init__()
                started.append(asyncio.get_running_loop().time())
                self.ready = SimpleNamespace(remote=self._dies)

            async def _dies(self) -> None:
                raise ActorDiedError

        more = [Stillborn, Stillborn, Stillborn, Replica]
        role = role_of("reward.mine", Replica(dead), more=(kind() for kind in more), settings={"rejoin_after_s": 5})
        assert columns(await scored(pool_of(role))) == [*range(8)]
        assert started == pytest.approx([1, 1 + 5, 1 + 5 + 10])
        assert [line.partition(":")[0] for line in role.lost] == [f"reward.mine-{k}" for k in range(4)]

    virtually(scenario())


def test_a_role_grows_and_shrinks_while_it_works(role_of: RoleOf) -> None:
    """A member that leaves finishes its call first, and is asked nothing more."""

    async def scenario() -> None:
        first, *more = [Replica(seconds=10) for _ in range(4)]
        dismissed: list[Any] = []
        role = role_of("reward.mine", first, more=more, dismissed=dismissed)
        work = asyncio.ensure_future(scored(pool_of(role), 20))
        await asyncio.sleep(5)
        role.resize(4)
        await asyncio.sleep(2)
        assert len(role.ready) == 4
        role.resize(2)
        await asyncio.sleep(1)
        assert ([m.state for m in role.members], dismissed) == (["ready", "ready", "leaving", "leaving"], [])
        assert columns(await work) == [*range(20)]
        assert sorted(map(id, dismissed)) == sorted(map(id, more[1:])) and [
            len(replica.asked) for replica in more[1:]
        ] == [1, 1]
        assert role.counts.lost == 0 and role.lost == []

    virtually(scenario())


def test_a_member_that_is_taken_away_ends_every_call_to_it() -> None:
    async def scenario() -> list[bool]:
        member = Member("rollout-0", None)
        deadline = Deadline(100, "x", "y")

        async def call() -> bool:
            with pytest.raises(MemberLost, match="rollout-0 is lost: taken") as lost:
                await member.call(lambda _: asyncio.sleep(50), deadline)
            return lost.value.at_work

        calls: list[Awaitable[bool]] = [asyncio.ensure_future(call()) for _ in range(3)]
        await asyncio.sleep(1)
        member.leave("lost", "taken")
        return list(await asyncio.gather(*calls))

    assert virtually(scenario()) == [True, False, False], "only the first was at work"

"""The reward pool: batches, bounded retries, and who pays for a failure. Servers are local stand-ins for actors."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from actors.deadline import DeadlineError
from actors.pool import GroupFailed, groups_at_fault
from actors.role import Role
from actors.scoring import RewardPool, score_group
from rewards.base import RewardError
from rewards.sections import PyiqaSection
from rl.types import RewardColumn, RewardTable

Score = Callable[[list[int]], list[RewardColumn]]


def from_actor(error: Exception) -> RayTaskError:
    """As Ray raises in the driver what an actor raised."""
    wrapped = RayTaskError("score", "traceback", pickle.loads(pickle.dumps(error)), pid=1, ip="127.0.0.1")
    raised: RayTaskError = wrapped.as_instanceof_cause()
    return raised


def server(score: Score) -> Any:
    """An actor handle whose `score` sees the ordinals of a call; tasks stand for their ordinals."""

    async def call(count: int, *carriers: Any) -> list[RewardColumn]:
        try:
            return score(list(carriers[:count]))
        except RewardError as error:
            raise from_actor(error) from None

    return SimpleNamespace(score=SimpleNamespace(remote=call))


def column(ordinal: int, name: str = "mine") -> RewardColumn:
    return RewardColumn(ordinal, name, np.array([float(ordinal), 1.0]), 0.1)


@pytest.fixture
def run(role_of: Callable[..., Role]) -> Callable[..., list[RewardColumn | BaseException]]:
    """Scores groups on one server."""

    def of(score: Score, ordinals: list[int], **config: Any) -> list[RewardColumn | BaseException]:
        async def everything() -> list[RewardColumn | BaseException]:
            reward = PyiqaSection.model_validate({"name": "mine", "type": "pyiqa", "batch_groups": 4, **config})
            pool = RewardPool(reward, role_of("reward.mine", server(score)))
            calls: list[Awaitable[RewardColumn]] = [pool.score(ordinal, ordinal, ordinal) for ordinal in ordinals]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
            pool.close()
            return results

        return asyncio.run(everything())

    return of


Run = Callable[..., list[RewardColumn | BaseException]]


def test_groups_that_wait_share_a_call(run: Run) -> None:
    calls: list[list[int]] = []

    def score(ordinals: list[int]) -> list[RewardColumn]:
        calls.append(ordinals)
        return [column(ordinal) for ordinal in ordinals]

    results = run(score, [0, 1, 2, 3, 4])
    assert calls == [[0, 1, 2, 3], [4]]
    assert [result.ordinal for result in results if isinstance(result, RewardColumn)] == [0, 1, 2, 3, 4]


def test_only_the_group_at_fault_is_dropped(run: Run) -> None:
    """One bad group in a full batch with no retries to spare: its neighbours are scored, whatever it costs them."""

    def score(ordinals: list[int]) -> list[RewardColumn]:
        if 2 in ordinals:
            raise RewardError("mine", "not finite", groups=(ordinals.index(2),), ordinals=(2,))
        return [column(ordinal) for ordinal in ordinals]

    results = run(score, [0, 1, 2, 3], retries=1)
    assert [type(result) for result in results] == [RewardColumn, RewardColumn, GroupFailed, RewardColumn]
    assert str(results[2]) == "reward 'mine' failed 2 times on group 2: not finite"


def test_a_failure_of_the_whole_call_counts_against_every_group(run: Run) -> None:
    def score(ordinals: list[int]) -> list[RewardColumn]:
        raise RewardError("mine", "out of memory")

    results = run(score, [0, 1], retries=2)
    assert all(isinstance(result, GroupFailed) for result in results)
    assert "failed 3 times on group 1: out of memory" in str(results[1])


def test_a_passing_failure_is_retried(run: Run) -> None:
    tries = iter([False, False, True])

    def score(ordinals: list[int]) -> list[RewardColumn]:
        if not next(tries):
            raise RewardError("mine", "try again", ordinals=tuple(ordinals))
        return [column(ordinal) for ordinal in ordinals]

    assert isinstance(run(score, [7], retries=2)[0], RewardColumn)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (from_actor(RewardError("mine", "x", ordinals=(2,))), {2}),
        (from_actor(RewardError("mine", "x")), {1, 2, 3}),
        (from_actor(RewardError("mine", "x", ordinals=(9,))), {1, 2, 3}),
        (from_actor(ValueError("x")), {1, 2, 3}),
        (DeadlineError("score", 1.0, "deadline_s"), {1, 2, 3}),
    ],
    ids=["named", "unnamed", "a stranger", "another error", "deadline"],
)
def test_groups_at_fault(error: Any, expected: set[int]) -> None:
    assert groups_at_fault(error, [1, 2, 3]) == expected


def test_an_answer_that_does_not_come_is_a_failed_attempt(role_of: Callable[..., Role]) -> None:
    async def scenario() -> BaseException | None:
        async def call(*_: Any) -> list[RewardColumn]:
            await asyncio.sleep(60)
            return []

        async def ready() -> None:
            pass

        config = PyiqaSection.model_validate({"name": "mine", "type": "pyiqa", "deadline_s": 0.02, "retries": 1})
        hanging = [
            SimpleNamespace(score=SimpleNamespace(remote=call), ready=SimpleNamespace(remote=ready)) for _ in range(3)
        ]
        dismissed: list[Any] = []
        pool = RewardPool(config, role_of("reward.mine", hanging[0], more=hanging[1:], dismissed=dismissed))
        (result,) = await asyncio.gather(pool.score(5, 5, 5), return_exceptions=True)
        assert dismissed == hanging[:2], "a late one is ended with its call, so no retry queues behind it"
        pool.close()
        return result if isinstance(result, BaseException) else None

    assert "failed 2 times on group 5: reward.mine-1 is lost: scoring: no answer within 0.02 s" in str(
        asyncio.run(scenario())
    )


def test_columns_become_a_table(role_of: Callable[..., Role]) -> None:
    async def scenario() -> RewardTable:
        names = ("a", "b")
        configs = [PyiqaSection.model_validate({"name": name, "type": "pyiqa"}) for name in names]
        pools = [
            RewardPool(
                config,
                role_of(config.name, server(lambda ordinals, name=config.name: [column(o, name) for o in ordinals])),
            )
            for config in configs
        ]
        table = await score_group(pools, 3, 3, 3)
        for pool in pools:
            pool.close()
        return table

    table = asyncio.run(scenario())
    assert (table.ordinal, table.names, table.seconds) == (3, ("a", "b"), (0.1, 0.1))
    assert table.scores.tolist() == [[3.0, 3.0], [1.0, 1.0]]

"""Waits for actors: the answer, the actor's own error, or an error that names the wait."""

import asyncio
from typing import Any

import pytest

from actors.deadline import DeadlineError, all_within, within


async def answer(value: int, after_s: float = 0.0) -> int:
    await asyncio.sleep(after_s)
    return value


async def fail(error: Exception) -> int:
    raise error


def test_answers_in_order() -> None:
    async def both() -> tuple[int, list[int]]:
        one = await within(answer(1), 5, "one", "a.deadline_s")
        return one, await all_within([answer(2, 0.02), answer(3)], 5, "two", "a.deadline_s")

    assert asyncio.run(both()) == (1, [2, 3])


@pytest.mark.parametrize("wait", ["within", "all_within"])
def test_no_answer_names_the_call_the_time_and_the_setting(wait: str) -> None:
    async def never() -> Any:
        if wait == "within":
            return await within(answer(1, 60), 0.02, "learner.train", "learner.deadline_s")
        return await all_within([answer(0), answer(1, 60)], 0.02, "learner.train", "learner.deadline_s")

    with pytest.raises(DeadlineError, match=r"learner.train: no answer within 0.02 s; .* raise learner.deadline_s"):
        asyncio.run(never())


def test_an_actors_own_timeout_is_not_ours() -> None:
    """A reward that asks a web service may raise TimeoutError at once; that is its error, not a missed deadline."""
    with pytest.raises(TimeoutError, match="the web service"):
        asyncio.run(within(fail(TimeoutError("the web service")), 5, "score", "x"))
    with pytest.raises(ValueError, match="first"):
        asyncio.run(all_within([answer(1, 60), fail(ValueError("first"))], 5, "score", "x"))


def test_a_cancelled_wait_leaves_nothing_running() -> None:
    async def leftovers() -> int:
        waiting = asyncio.create_task(within(answer(1, 60), 60, "x", "y"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(leftovers()) == 0

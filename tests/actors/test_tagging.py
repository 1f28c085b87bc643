"""The tagger pool: prompts of the right image, bounded retries, dropped groups. Servers are local stand-ins."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import actors.lanes
from actors.lanes import RolloutPool, Sampling, ScoredGroup, Versions
from actors.ledger import Ledger
from actors.pool import GroupFailed
from actors.role import Role
from actors.scoring import RewardPool
from actors.tagging import TaggerPool, tagger_pools
from rewards.taggers.sections import PythonTaggerSection
from rewards.taggers.server import TaggerServer
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.identity import Identity
from rl.types import ImageTags, RewardColumn, RolloutReceipt, SRTask, TagRequest, image_digest

Tag = Callable[[list[TagRequest]], list[ImageTags]]

CODE = "def tag(images): return [f'mean {image.mean():.3f}, side {image.shape[1]}' for image in images]\n"


def remote(call: Callable[..., Any]) -> Any:
    """A method of an actor handle."""

    async def awaitable(*arguments: Any) -> Any:
        return call(*arguments)

    return SimpleNamespace(remote=awaitable)


def handle(tag: Tag) -> Any:
    return SimpleNamespace(tag=remote(lambda *requests: tag(list(requests))))


def answer(request: TagRequest, text: str = "a tree") -> ImageTags:
    return ImageTags(request.ordinal, text, image_digest(request.image), 0.25)


def task(ordinal: int, hr: bool = True) -> SRTask:
    lr = np.full((3, 8, 8), ordinal, np.uint8)
    return SRTask(ordinal, f"i{ordinal}", lr, np.full((3, 32, 32), 100 + ordinal, np.uint8) if hr else None, 4, 0)


def settings(**fields: Any) -> PythonTaggerSection:
    return PythonTaggerSection.model_validate({"type": "python", "file": "x.py", "batch_images": 4, **fields})


Prompts = Callable[..., list[tuple[SRTask, float] | Exception]]


@pytest.fixture
def prompts(role_of: Callable[..., Role]) -> Prompts:
    def of(tag: Tag, tasks: list[SRTask], suffix: str = "8k", **fields: Any) -> list[tuple[SRTask, float] | Exception]:
        async def everything() -> list[Any]:
            pool = TaggerPool("data", settings(**fields), suffix, role_of("tagger.data", handle(tag)))
            results = await asyncio.wait_for(asyncio.gather(*map(pool.prompted, tasks), return_exceptions=True), 20)
            pool.close()
            return results

        return asyncio.run(everything())

    return of


@pytest.mark.parametrize(("image", "first"), [("hr", "mean 100.000, side 32"), ("lr", "mean 0.000, side 8")])
def test_each_task_gets_the_tags_of_its_own_image(prompts: Prompts, image: str, first: str, tmp_path: Path) -> None:
    """Through the real server, several images a call; nothing but the prompt changes."""
    (tmp_path / "tags.py").write_text(CODE)
    server = TaggerServer("data", settings(file=str(tmp_path / "tags.py")))
    tasks = [task(ordinal) for ordinal in range(6)]
    results = prompts(server.tag, tasks, "clean, 8k", image=image)
    for before, result in zip(tasks, results, strict=True):
        assert isinstance(result, tuple)
        after, seconds = result
        seen = before.hr if image == "hr" else before.lr
        assert seen is not None
        assert after.prompt == f"mean {seen.mean():.3f}, side {seen.shape[1]}, clean, 8k" and seconds >= 0
        assert replace(after, prompt="").__dict__ == before.__dict__
    assert isinstance(results[0], tuple) and results[0][0].prompt == f"{first}, clean, 8k"


def test_without_a_suffix_the_prompt_is_the_tags_and_the_seconds_are_the_servers(prompts: Prompts) -> None:
    ((after, seconds),) = prompts(lambda requests: [answer(r) for r in requests], [task(0)], "")  # type: ignore[misc]
    assert (after.prompt, seconds) == ("a tree", 0.25)


WRONG: dict[str, tuple[Callable[[list[ImageTags]], list[ImageTags]], str]] = {
    "too few": (lambda good: good[:-1], "expected 2 answers, one per group, got 1"),
    "too many": (lambda good: [*good, good[0]], "expected 2 answers, one per group, got 3"),
    "swapped": (
        lambda good: good[::-1],
        f"expected image 0 with digest {image_digest(np.full((3, 8, 8), 0, np.uint8))}, got 1 with "
        f"{image_digest(np.full((3, 8, 8), 1, np.uint8))}; image 1 with digest",
    ),
    "another image": (
        lambda good: [replace(good[0], digest=good[1].digest), good[1]],
        f"expected image 0 with digest {image_digest(np.full((3, 8, 8), 0, np.uint8))}, got 0 with "
        f"{image_digest(np.full((3, 8, 8), 1, np.uint8))}",
    ),
    "an empty text": (lambda good: [replace(good[0], text=""), good[1]], "image 0 to get tags, got an empty text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_count_or_order_is_an_error_with_both_values(prompts: Prompts, case: str) -> None:
    change, message = WRONG[case]
    results = prompts(
        lambda requests: change([answer(r) for r in requests]) if len(requests) > 1 else [],
        [task(0, hr=False), task(1, hr=False)], image="lr", retries=0,
    )  # fmt: skip
    assert isinstance(results[0], GroupFailed) and message in str(results[0])
    assert str(results[0]).startswith("tagger 'data' failed 1 times on group 0: ")


def test_a_passing_failure_is_retried_and_only_as_often_as_configured(prompts: Prompts) -> None:
    calls: list[list[int]] = []

    def tag(requests: list[TagRequest]) -> list[ImageTags]:
        calls.append([request.ordinal for request in requests])
        return [] if len(calls) <= 2 else [answer(request) for request in requests]

    assert isinstance(prompts(tag, [task(7)], retries=2)[0], tuple) and calls == [[7]] * 3
    calls.clear()
    failed = prompts(tag, [task(7)], retries=1)[0]
    assert isinstance(failed, GroupFailed) and calls == [[7]] * 2
    assert str(failed) == "tagger 'data' failed 2 times on group 7: expected 1 answers, one per group, got 0"


def test_an_image_that_cannot_be_tagged_does_not_cost_its_neighbours(prompts: Prompts, tmp_path: Path) -> None:
    (tmp_path / "tags.py").write_text("def tag(images): return ['' if i[0, 0, 0] == 102 else 'x' for i in images]\n")
    server = TaggerServer("data", settings(file=str(tmp_path / "tags.py")))

    def tag(requests: list[TagRequest]) -> list[ImageTags]:
        return server.tag(requests)

    results = prompts(tag, [task(ordinal) for ordinal in range(4)], retries=1)
    assert [type(result).__name__ for result in results] == ["tuple", "tuple", "GroupFailed", "tuple"]
    assert "failed 2 times on group 2" in str(results[2]) and "got image" in str(results[2])


def test_hr_tags_of_a_task_without_hr_are_refused(prompts: Prompts) -> None:
    (result,) = prompts(lambda requests: [answer(r) for r in requests], [task(3, hr=False)])
    assert isinstance(result, ValueError) and "task 3 'i3' has no HR image to tag" in str(result)


@pytest.fixture
def sampling(
    monkeypatch: pytest.MonkeyPatch, naosd_config: Callable[..., Any], role_of: Callable[..., Role]
) -> Callable[..., Any]:
    """`fill(0, 0)` on lanes with a stand-in worker and reward, and with `tag` behind a tagger pool."""
    monkeypatch.setattr(actors.lanes.ray, "put", lambda task: task)

    async def fill(tag: Tag, sampled: list[SRTask], ledger: Ledger) -> tuple[Sampling, ScoredGroup]:
        config: RunConfig = naosd_config(
            "data.tagger={type: python, file: x.py, retries: 1}", "data.prompt_suffix=8k", "train.groups_per_step=2"
        )

        async def receipt(task: SRTask) -> RolloutReceipt:
            sampled.append(task)
            return RolloutReceipt(task.ordinal, 0, "d", 4, 0.5)

        rollout = SimpleNamespace(remote=lambda task, *_, **__: (receipt(task), task.ordinal))
        worker = SimpleNamespace(rollout=SimpleNamespace(options=lambda **_: rollout))
        columns = remote(lambda count, task, group: [RewardColumn(task.ordinal, "lr_consistency", np.ones(4), 0.1)])
        rewards = [RewardPool(config.rewards[0], role_of("reward.lr_consistency", SimpleNamespace(score=columns)))]
        workers = RolloutPool(config, role_of("rollout", worker))
        pools = tagger_pools(config, {"data": role_of("tagger.data", handle(tag))})
        versions = Versions()
        source = TaskSource(config.data, 0)
        lanes = Sampling(config, source, ledger, workers, rewards, versions, pools["data"])
        await versions.publish(0)
        try:
            return lanes, await asyncio.wait_for(lanes.fill(0, 0), 20)
        finally:
            for pool in (workers, *rewards, *pools.values()):
                pool.close()  # type: ignore[attr-defined]

    return lambda *arguments: asyncio.run(fill(*arguments))


def test_a_group_whose_tagging_fails_is_dropped_and_issued_again(sampling: Callable[..., Any]) -> None:
    """Image 0 fails twice, all that `retries: 1` allows; its slot's next attempt is tagged and then sampled."""
    asked: list[int] = []
    sampled: list[SRTask] = []
    ledger = Ledger(2)

    def tag(requests: list[TagRequest]) -> list[ImageTags]:
        asked.extend(request.ordinal for request in requests)
        return [answer(request, "bricks") for request in requests if request.ordinal > 0]

    lanes, group = sampling(tag, sampled, ledger)
    again = Identity(0, 0, 1).ordinal(2)
    assert asked == [0, 0, again]
    assert (ledger.dropped, ledger.pending) == ([0], {again})
    assert [task.ordinal for task in sampled] == [again]
    assert sampled[0].prompt == group.task.prompt == group.task_ref.prompt == "bricks, 8k"
    assert (lanes.clock.dropped, {pool.title: n for pool, n in lanes.clock.failed.items()}) == (1, {"tagger 'data'": 1})
    assert (lanes.clock.tag_s, lanes.clock.sample_s) == (0.25, 0.5)


def test_a_tagger_that_always_fails_ends_the_run_with_its_last_error(sampling: Callable[..., Any]) -> None:
    """2 groups a step and 2 attempts each: the fifth failure in a row is one too many, and the sixth ends it."""
    ledger = Ledger(2)
    with pytest.raises(
        RuntimeError, match=r"tagger 'data' failed 2 times on group \d+: .*got 0; 6 calls failed in a row"
    ):
        sampling(lambda requests: [], [], ledger)
    assert ledger.dropped == [Identity(0, 0, attempt).ordinal(2) for attempt in range(3)]


def test_sections_share_processes_where_only_the_image_differs(
    naosd_config: Callable[..., Any], role_of: Callable[..., Role]
) -> None:
    tagger = "{type: python, file: x.py, image: %s, retries: %d, cpus: 0.5, replicas: 3}"

    def config(*taggers: str | None) -> RunConfig:
        sections = ("data.tagger", "eval.data.tagger")
        given = [f"{key}={value}" for key, value in zip(sections, taggers, strict=True) if value]
        made: RunConfig = naosd_config("eval.data={path: [x], prompt_suffix: b}", "data.prompt_suffix=a", *given)
        return made

    nothing = config(None, None)
    cases = {
        (None, None): [],
        (tagger % ("hr", 2), None): ["data"],
        (None, tagger % ("lr", 2)): ["eval.data"],
        (tagger % ("hr", 2), tagger % ("lr", 2)): ["data"],
        (tagger % ("hr", 2), tagger % ("hr", 1)): ["data", "eval.data"],
    }
    for taggers, spawned in cases.items():
        made = config(*taggers)
        assert list(made.taggers) == spawned
        assert made.total_cpus == nothing.total_cpus + 1.5 * len(spawned)

    async def pools() -> dict[str, TaggerPool]:
        made = config(tagger % ("hr", 2), tagger % ("lr", 2))
        found = tagger_pools(
            made, {"data": role_of("tagger.data", handle(lambda requests: [answer(r) for r in requests]))}
        )
        prompted = [(await found[where].prompted(task(1)))[0].prompt for where in ("data", "eval.data")]
        assert prompted == ["a tree, a", "a tree, b"]
        for pool in found.values():
            pool.close()
        return found

    found = asyncio.run(pools())
    assert [found[where].config.image for where in ("data", "eval.data")] == ["hr", "lr"]  # type: ignore[union-attr]

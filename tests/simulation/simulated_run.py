"""A whole online run in virtual time: the real controller, lanes, pools, fleet, push and ledger around processes that
are coroutines and can be killed, delayed, hung, or made to answer for the wrong group.

Every process works off its calls in order, as a Ray actor does. A fault counts only when it hit a call in flight or a
process that was loading; `World.fired` says how often each did.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from ray.exceptions import ActorDiedError

from actors.launch import IN_FLIGHT, ROLLOUT, Cluster, reward_role
from actors.role import Recipe
from actors.roles import Published
from learner.report import TrainReport
from rl.config.online import RunConfig
from rl.metrics import Key
from rl.types import Echo, RewardColumn, RolloutReceipt, SRTask


@dataclass
class World:
    """What may happen, and what did.

    Args:
        fault_every: mean seconds between two faults; 0: none.
        sample_s, score_s, train_s: what a call takes.
    """

    rng: random.Random
    fault_every: float = 0.0
    sample_s: float = 10.0
    score_s: float = 2.0
    train_s: float = 5.0
    load_s: float = 10.0
    faults: Sequence[str] = ("kill", "delay", "hang", "wrong")
    fired: Counter[str] = field(default_factory=Counter)
    processes: list["Process"] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    """Ordinals, in order."""
    false_scores: int = 0

    async def strike(self) -> None:
        """Faults at random times, for as long as the run lasts."""
        while self.fault_every:
            await asyncio.sleep(self.rng.expovariate(1 / self.fault_every))
            alive = [process for process in self.processes if process.alive and process.busy]
            if alive:
                self.rng.choice(alive).suffer(self.rng.choice(list(self.faults)), self.fired)


class Process:
    """One simulated actor; `method.remote(...)` queues a call and returns its answer to be awaited."""

    def __init__(self, world: World, methods: dict[str, Callable[..., Awaitable[Any]]]) -> None:
        self.alive = True
        self.busy = 0
        self.fate = ""
        self._world = world
        self._methods = methods
        self._turn = asyncio.Lock()
        self._died = asyncio.get_running_loop().create_future()
        world.processes.append(self)

    def __getattr__(self, name: str) -> "_Method":
        if name not in self._methods:
            raise AttributeError(name)
        return _Method(self, name)

    def suffer(self, fault: str, fired: Counter[str]) -> None:
        if fault == "kill":
            self.kill()
        else:
            self.fate = fault
        fired[fault] += 1

    def kill(self) -> None:
        self.alive = False
        if not self._died.done():
            self._died.set_result(None)

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.busy += 1
        work = asyncio.ensure_future(self._in_turn(name, *args, **kwargs))
        try:
            either: set[asyncio.Future[Any]] = {work, self._died}
            await asyncio.wait(either, return_when="FIRST_COMPLETED")
            if self._died.done():
                raise ActorDiedError
            return work.result()
        finally:
            self.busy -= 1
            if self._died.done():
                work.cancel()

    async def _in_turn(self, name: str, *args: Any, **kwargs: Any) -> Any:
        async with self._turn:
            answer = await self._methods[name](*args, **kwargs)
            fate, self.fate = self.fate, ""
            if fate == "delay":
                await asyncio.sleep(self._world.rng.uniform(0, 60))
            if fate == "hang":
                await asyncio.sleep(10**9)
            if fate == "wrong" and isinstance(answer, list):
                others = [replace(column, ordinal=column.ordinal + 1) for column in answer]
                return self._world.rng.choice([others, [*answer, *answer]])
            return answer


@dataclass(frozen=True)
class _Method:
    process: Process
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        # as in Ray the call is on its way when this returns
        answer = asyncio.ensure_future(self.process.call(self.name, *args, **kwargs))
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self.name == "rollout":
            return answer, f"group of {args[0].ordinal}"
        return answer

    def options(self, **_: Any) -> "_Method":
        return self


def value_of(ordinal: int, reward: str) -> float:
    """The only right score of a group."""
    return random.Random(f"{ordinal} {reward}").random()


def cluster(world: World, config: RunConfig) -> Cluster:
    """Processes for every role of a run."""
    learner = _Learner(world)

    async def ready() -> None:
        await asyncio.sleep(world.rng.uniform(0.5, 1.5) * world.load_s)

    def rollout() -> Process:
        held: dict[str, Any] = {}

        async def install(ref: tuple[int, str], *, probe: bool = False) -> Echo:
            held["version"], held["digest"] = ref
            return Echo(*ref, 0.1, 0.1, 1, float(ref[0]) if probe else None)

        async def sample(task: SRTask, seeds: tuple[int, ...], *, training: bool = True) -> RolloutReceipt:
            await asyncio.sleep(world.rng.uniform(0.8, 1.2) * world.sample_s)
            return RolloutReceipt(task.ordinal, held["version"], held["digest"], len(seeds), world.sample_s)

        return Process(world, {"ready": ready, "install": install, "rollout": sample})

    def reward(name: str) -> Process:
        async def score(count: int, *carriers: Any) -> list[RewardColumn]:
            await asyncio.sleep(world.rng.uniform(0.8, 1.2) * world.score_s)
            size = config.group_size
            return [
                RewardColumn(task.ordinal, name, np.arange(float(size)) + value_of(task.ordinal, name), world.score_s)
                for task in carriers[:count]
            ]

        return Process(world, {"ready": ready, "score": score})

    rewards = [
        Recipe(reward_role(section.name), section.replicas, partial(reward, section.name), Process.kill)
        for section in config.rewards
    ]
    workers = Recipe(ROLLOUT, config.rollout.workers, rollout, Process.kill, slots=IN_FLIGHT)
    return Cluster((learner,), [_done()], (workers, *rewards))


async def _done() -> None:
    """The learner's start: the base is the reference."""


class _Learner:
    """Never fails here: a learner that dies ends the run, which resumes from its checkpoint."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.version = 0
        self.train, self.publish = _Plain(self._train), _Plain(self._publish)

    async def _train(self, advantages: Sequence[Any], *carriers: Any) -> TrainReport:
        tasks, groups = carriers[: len(advantages)], carriers[len(advantages) :]
        assert [f"group of {task.ordinal}" for task in tasks] == [*groups]
        await asyncio.sleep(self._world.train_s)
        self._world.trained += [task.ordinal for task in tasks]
        self.version += 1
        return TrainReport(self.version, self.version, {Key.LOSS_TOTAL: 0.0}, {}, 1.0, 1e-4, self._world.train_s)

    async def _publish(self, *, ema: bool = False) -> Published:
        ref: Any = (self.version, f"digest {self.version}")
        return Published(ref, self.version, ref[1], 4, 0.0, 0.0)


@dataclass(frozen=True)
class _Plain:
    call: Callable[..., Awaitable[Any]]

    def remote(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        return self.call(*args, **kwargs)

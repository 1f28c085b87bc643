"""Held-out photographs before, during and after training: the EMA policy on a fixed grid of crops with fixed seeds,
through the same workers and reward servers as training."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.deadline import within
from actors.lanes import Sampling
from actors.pool import GroupFailed
from actors.tagging import TaggerPool
from actors.weight_sync import WeightSync
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.evaluation.records import EVAL_FILE, EvalRecord, Phase, append_eval
from rl.metrics import Key
from rl.seeding import derive_seed
from rl.types import U8, RolloutGroup, SRTask

SHOWN = 6
"""Number of crops kept as pixels for the before/after sheet."""


def eval_seeds(crop_id: str, samples: int) -> tuple[int, ...]:
    """Noise seeds of a held-out crop, the same in every run, so that runs are paired."""
    return tuple(derive_seed("eval", crop_id, sample) for sample in range(samples))


class Evaluator:
    """Writes eval.jsonl and keeps the pixels of a few crops.

    Args:
        before: means before the first step; filled here, or by a resumed run from its checkpoint.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, lanes: Sampling, sync: WeightSync, before: dict[str, float],
        tagger: TaggerPool | None = None,
    ) -> None:  # fmt: skip
        self._config = config
        self._run_dir = run_dir
        self._lanes = lanes
        self._sync = sync
        self._tagger = tagger
        self._before = before
        held_out = config.eval
        self._every = held_out.every if held_out else 0
        self._samples = held_out.samples if held_out else 0
        self._tasks = TaskSource(held_out.data, 0).grid(held_out.crops) if held_out else []

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after `step` steps."""
        return bool(self._tasks) and self._every > 0 and step % self._every == 0

    async def run(self, phase: Phase, step: int) -> dict[str, float]:
        """Evaluate; returns the metrics. The workers hold the EMA afterwards: push the behaviour adapter again."""
        if not self._tasks:
            return {}
        await self._tag()
        version = (await self._sync.push(ema=True)).version
        answers = await asyncio.gather(*(self._crop(task, phase, version) for task in self._tasks))
        results = [answer for answer in answers if answer is not None]
        if not results:
            raise RuntimeError(f"evaluation '{phase}': no crop of {len(answers)} could be scored, see above")
        records = [record for crop, _ in results for record in crop]
        append_eval(self._run_dir / EVAL_FILE, records)
        shown = [group for _, group in results if group is not None]
        self._keep(phase, step, shown)
        return {**self._metrics(phase, records), Key.EVAL_FAILED: float(len(answers) - len(results))}

    async def _tag(self) -> None:
        """Once per process: every evaluation has the same prompts, so that even a random tagger keeps them paired."""
        tagger, self._tagger = self._tagger, None
        if tagger is not None:
            self._tasks = [task for task, _ in await asyncio.gather(*map(tagger.prompted, self._tasks))]

    async def _crop(
        self, task: SRTask, phase: Phase, version: int
    ) -> tuple[list[EvalRecord], RolloutGroup | None] | None:
        """None: a server failed on it for good; the crop is left out, as a failure has no score."""
        seeds = eval_seeds(task.lr_id, self._samples)
        task_ref = ray.put(task)
        try:
            sampled, table = await self._lanes.sample_and_score(task.ordinal, task_ref, seeds, training=False)
        except GroupFailed as failure:
            print(f"evaluation '{phase}', crop {task.lr_id} is left out: {failure}", flush=True)
            return None
        photo = task.lr_id.partition("@")[0]
        records = [
            EvalRecord(phase, version, photo, task.lr_id, seed, dict(zip(table.names, map(float, row), strict=True)))
            for seed, row in zip(seeds, table.scores, strict=True)
        ]
        stride = max(1, len(self._tasks) // SHOWN)
        shown = task.ordinal % stride == 0 and task.ordinal // stride < SHOWN
        return records, await self._fetch(sampled.group_ref) if shown else None

    async def _fetch(self, group_ref: Any) -> RolloutGroup:
        deadline_s = self._config.rollout.deadline_s
        group: RolloutGroup = await within(group_ref, deadline_s, "pixels of an evaluated crop", "rollout.deadline_s")
        return group

    def _keep(self, phase: Phase, step: int, groups: list[RolloutGroup]) -> None:
        folder = self._run_dir / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        images: dict[str, U8] = {group.lr_id: group.images[0] for group in groups}
        np.savez(folder / f"{phase}-{step:06d}.npz", allow_pickle=False, **images)

    def _metrics(self, phase: Phase, records: list[EvalRecord]) -> dict[str, float]:
        names = [reward.name for reward in self._config.rewards]
        scales = {reward.name: reward.scale for reward in self._config.rewards}
        means = {n: float(np.mean([record.scores[n] for record in records])) / scales[n] for n in names}
        if phase == "start":
            self._before.update(means)
        values = {Key.EVAL_MEAN.of(name): mean for name, mean in means.items()}
        values.update({Key.EVAL_DELTA.of(n): means[n] - self._before[n] for n in names if n in self._before})
        return values

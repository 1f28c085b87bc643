"""The loop of an offline run: pools in, adapters out; the learner's ranks are its only processes.

for each step:
    groups  <- the next ones in the pools' order
    A       <- aggregation over the whole batch of stored scores
    learner <- train(groups, A)                version + 1
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.monitor import Monitor, Stopwatch
from actors.training import Outcome, TrainingLoop
from rl.config.offline import OfflineConfig
from rl.data.pools import PoolSource
from rl.metrics import Key, Value, batch_values


class OfflineLoop(TrainingLoop):
    """Reads a batch while the learner is idle: decoding a few PNGs takes little time compared with a step."""

    def __init__(self, config: OfflineConfig, learners: Sequence[Any], monitor: Monitor, run_dir: Path) -> None:
        super().__init__(config, learners, monitor, run_dir)
        self.config = config

    async def run(self, *, resume: bool) -> Outcome:
        """Train to the last step, or until the end of the step during which `stop` was set."""
        await self.begin(resume=resume)
        source = PoolSource(self.config)
        while self.going:
            await self._one_step(source)
            await self.save_if_due()
        await self.save_if_due(at_the_end=True)
        return self.outcome

    async def _one_step(self, source: PoolSource) -> None:
        watch = Stopwatch()
        ordinals = [self.ledger.issue(self.step, slot) for slot in range(self.config.train.groups_per_step)]
        tasks, groups, tables = zip(*(source.item(ordinal) for ordinal in ordinals), strict=True)
        scores = np.stack(tables)
        batch = self.config.advantage.advantages(scores, self.config.scores, tasks)
        put = [[ray.put(carrier) for carrier in carriers] for carriers in (tasks, groups)]
        report = await self.train(put[0], put[1], batch.advantages, ordinals)
        self.step += 1
        step_s = watch()
        images = sum(len(group.images) for group in groups)
        own: dict[str, Value] = {
            Key.POLICY_VERSION: float(report.version),
            Key.TIME_STEP: step_s,
            Key.PERF_IMAGES: images / step_s,
        }
        self.log({**report.values(), **own, **batch_values(self.config.scores, scores, batch, None)})

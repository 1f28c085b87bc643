"""One reward behind one method: tasks and groups in, reward columns out. A plain class; `actors/` wraps it.

Left out: retries, deadlines and dropping groups (done by the controller), transport, and replicas.
"""

import time
from collections.abc import Sequence

from rewards import build_reward
from rewards.base import LocalReward, LocalScores, RewardError, RewardInput
from rl.config.reward import RewardSection
from rl.types import F64, RewardColumn, RewardMap, RolloutGroup, SRTask


class RewardServer:
    """Scores groups with one reward, up to `config.batch_groups` groups of equal size per call.

    Args:
        config: the reward to build.
        threads: torch's intra-op threads for this whole process; None leaves them as they are.
        cell_px: side in pixels of the cells of its maps; None where the run asks for no maps.

    Raises:
        RewardError: the reward could not be built.
    """

    def __init__(self, config: RewardSection, *, threads: int | None = None, cell_px: int | None = None) -> None:
        limit_threads(threads)
        self.config = config
        self.reward = build_reward(config)
        self._cell_px = cell_px if config.map else None
        if self._cell_px and config.has_map and not isinstance(self.reward, LocalReward):
            raise RewardError(config.name, f"its section says has_map, but {config.builder} has no score_locally()")

    def score(self, tasks: Sequence[SRTask], groups: Sequence[RolloutGroup]) -> list[RewardColumn]:
        """One column per group, in the order given; `seconds` is the group's share of its batch, by images.

        Raises:
            ValueError: tasks and groups do not belong together, or an array has the wrong shape.
            RewardError: a group could not be scored; `ordinals` names the groups at fault.
        """
        inputs = [_reward_input(task, group) for task, group in zip(tasks, groups, strict=True)]
        columns: dict[int, RewardColumn] = {}
        for batch in self._batches(inputs):
            start = time.perf_counter()
            try:
                answers = self._answers([inputs[k] for k in batch])
            except RewardError as error:
                positions = tuple(batch[k] for k in error.groups) or tuple(batch)
                ordinals = tuple(groups[k].ordinal for k in positions)
                raise RewardError(error.name, error.reason, groups=positions, ordinals=ordinals) from error
            per_image = (time.perf_counter() - start) / sum(len(scores) for scores, _ in answers)
            for k, (scores, local) in zip(batch, answers, strict=True):
                seconds = per_image * len(scores)
                columns[k] = RewardColumn(groups[k].ordinal, self.config.name, scores, seconds, local)
        return [columns[k] for k in range(len(groups))]

    def _answers(self, batch: Sequence[RewardInput]) -> list[tuple[F64, RewardMap | None]]:
        if self._cell_px is None or not isinstance(self.reward, LocalReward):
            return [(scores, None) for scores in self.reward.score_groups(batch)]
        answers: list[tuple[F64, RewardMap | None]] = []
        for k, (one, local) in enumerate(zip(batch, self.reward.score_locally(batch), strict=True)):
            if not isinstance(local, LocalScores):
                answers.append((local, None))
                continue
            try:
                values = local.in_cells(self.config.name, one.size, self._cell_px)
            except RewardError as error:
                raise RewardError(error.name, error.reason, groups=(k,)) from error
            answers.append((local.scores, RewardMap.of(values)))
        return answers

    def _batches(self, inputs: Sequence[RewardInput]) -> list[list[int]]:
        by_size: dict[tuple[int, ...], list[int]] = {}
        for k, one in enumerate(inputs):
            by_size.setdefault((*one.images.shape[1:], one.scale), []).append(k)
        step = self.config.batch_groups
        return [same[at : at + step] for same in by_size.values() for at in range(0, len(same), step)]


def limit_threads(threads: int | None) -> None:
    """Set this process's intra-op threads in torch; None leaves them alone and does not import torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _reward_input(task: SRTask, group: RolloutGroup) -> RewardInput:
    if task.ordinal != group.ordinal:
        raise ValueError(f"expected the group of task {task.ordinal}, got the group of task {group.ordinal}")
    images = group.images
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != "uint8" or not len(images):
        raise ValueError(f"group {group.ordinal}: expected uint8 [G, 3, H, W], got {images.dtype} {images.shape}")
    if task.hr is not None and task.hr.shape != images.shape[1:]:
        raise ValueError(f"group {group.ordinal}: expected hr {images.shape[1:]}, got {task.hr.shape}")
    return RewardInput(images, task.lr, task.hr, task.scale)

"""How many rollout workers a run needs, from who waits for whom."""

from rl.config.rollout import AutoscaleSection


class Autoscaler:
    """One worker more where the learner waits while workers are busy, one fewer where workers wait for the learner;
    after `patience` steps in a row that say the same."""

    def __init__(self, section: AutoscaleSection) -> None:
        self._section = section
        self._streak = 0
        """Steps in a row that ask for more (positive) or fewer (negative) workers."""

    def after_step(self, workers: int, idle_learner: float, idle_rollout: float) -> int:
        """Workers wanted from now on; the arguments are the last step's count and idle shares, 0..1."""
        section = self._section
        more = idle_learner > section.idle and idle_rollout < section.idle
        fewer = idle_rollout > section.idle and idle_learner < section.idle
        if more == fewer or (self._streak > 0) != more:
            self._streak = 0
        self._streak += more - fewer
        if abs(self._streak) < section.patience:
            return self._bounded(workers)
        change, self._streak = (1 if self._streak > 0 else -1), 0
        return self._bounded(workers + change)

    def _bounded(self, workers: int) -> int:
        return min(self._section.max, max(self._section.min, workers))

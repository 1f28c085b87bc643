"""A RolloutWorker as a Ray actor: builds it inside the actor, so that the driver never imports torch."""

from rl.config.objective import SampledWith
from rl.config.run import RunConfig
from rl.types import Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask


class RolloutActor:
    """One replica; `rl.rollout.RolloutWorker` documents each method."""

    def __init__(self, config: RunConfig) -> None:
        from rl.rollout import RolloutWorker

        self.worker = RolloutWorker(config)

    def ready(self) -> int:
        """Answers when the model is loaded: the number of adapter values."""
        return self.worker.adapter_size

    def install(self, snapshot: LoraSnapshot) -> Echo:
        """Load, verify, echo."""
        return self.worker.install(snapshot)

    def canary(self) -> float:
        """A number that changes when the adapter's effect changes."""
        return self.worker.canary()

    def rollout(
        self, task: SRTask, seeds: tuple[int, ...], sampled_with: SampledWith = "policy"
    ) -> tuple[RolloutReceipt, RolloutGroup]:
        """Sample one group; the two results are separate objects, so the driver fetches the receipt alone."""
        return self.worker.rollout(task, seeds, sampled_with=sampled_with)

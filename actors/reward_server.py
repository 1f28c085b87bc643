"""A RewardServer as a Ray actor: resolves references and nothing else."""

from rl.config.reward import RewardConfig
from rl.types import RewardColumn, RolloutGroup, SRTask


class RewardActor:
    """One replica of one reward."""

    def __init__(self, config: RewardConfig) -> None:
        from rewards.server import RewardServer

        self.server = RewardServer(config, threads=config.threads)

    def ready(self) -> str:
        """Answers when the model is loaded."""
        return self.server.config.name

    def score(self, count: int, *carriers: SRTask | RolloutGroup) -> list[RewardColumn]:
        """`count` tasks, then their groups; Ray resolves top-level references only, hence the flat arguments."""
        tasks = [carrier for carrier in carriers[:count] if isinstance(carrier, SRTask)]
        groups = [carrier for carrier in carriers[count:] if isinstance(carrier, RolloutGroup)]
        return self.server.score(tasks, groups)

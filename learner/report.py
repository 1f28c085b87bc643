"""Report of one training batch, per rank and over all ranks. Torch-free: the driver reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rl.metrics import Key, Value


@dataclass(frozen=True)
class TrainReport:
    """The report of one rank or, after `over_ranks`, of all ranks."""

    version: int
    updates: int
    losses: dict[Key, float]
    """`loss/total` and the objective's own terms, means over groups and slots."""
    maxima: dict[Key, float]
    """The objective's terms that are reported as maxima."""
    grad_norm: float
    """Mean over the updates of the global norm before clipping, the same on every rank."""
    lr: float
    train_s: float

    def values(self) -> dict[str, Value]:
        """Under the keys of the metrics table."""
        return {
            **{str(key): value for key, value in {**self.losses, **self.maxima}.items()},
            Key.OPTIM_GRAD_NORM: self.grad_norm,
            Key.OPTIM_LR: self.lr,
            Key.OPTIM_UPDATES: float(self.updates),
            Key.TIME_TRAIN: self.train_s,
        }


def over_ranks(reports: Sequence[TrainReport]) -> TrainReport:
    """Means of the losses (every rank has equally many groups), maxima of the maxima, the slowest rank's time."""
    first = reports[0]
    return TrainReport(
        version=first.version,
        updates=first.updates,
        losses={key: sum(report.losses[key] for report in reports) / len(reports) for key in first.losses},
        maxima={
            key: max(report.maxima[key] for report in reports if key in report.maxima)
            for key in dict.fromkeys(key for report in reports for key in report.maxima)
        },
        grad_norm=first.grad_norm,
        lr=first.lr,
        train_s=max(report.train_s for report in reports),
    )

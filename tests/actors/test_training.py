"""What every loop does with the learner's ranks: rows and carriers shared out, reports put together. Ranks are local
stand-ins for actors."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import actors.training
from actors.ledger import Ledger
from actors.monitor import Monitor
from actors.training import TrainingLoop
from learner.report import TrainReport, over_ranks
from learner.state import StateFiles
from rl.config.load import validate
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig
from rl.metrics import Key, Metrics, read_metrics


def report(**changes: Any) -> TrainReport:
    values: dict[str, Any] = {
        "version": 3, "updates": 6, "losses": {Key.LOSS_TOTAL: 1.0, Key.LOSS_KL: 0.25},
        "maxima": {Key.RATIO_DEVIATION: 0.1}, "grad_norm": 2.0, "lr": 1e-4, "train_s": 5.0,
    }  # fmt: skip
    return TrainReport(**{**values, **changes})


def test_losses_are_means_and_maxima_maxima_over_ranks() -> None:
    """The slowest rank's seconds; the gradient's norm and the rate are the same on every rank."""
    second = report(
        losses={Key.LOSS_TOTAL: 4.0, Key.LOSS_KL: 0.5},
        maxima={Key.RATIO_DEVIATION: 0.7, Key.RATIO_FRESH: 0.0},
        train_s=4.0,
    )
    both = over_ranks([report(), second])
    assert both == report(
        losses={Key.LOSS_TOTAL: 2.5, Key.LOSS_KL: 0.375}, maxima={Key.RATIO_DEVIATION: 0.7, Key.RATIO_FRESH: 0.0}
    )
    assert over_ranks([report()]) == report()


def test_a_report_has_the_keys_of_the_table() -> None:
    values = report().values()
    assert values == {
        "loss/total": 1.0, "loss/kl": 0.25, "ratio/max_deviation": 0.1, "optim/grad_norm": 2.0, "optim/lr": 1e-4,
        "optim/updates": 6.0, "time/train_s": 5.0,
    }  # fmt: skip
    assert Metrics(1, 0.0, values).to_json()


class Rank:
    """Remembers what it trained on and answers with its own loss."""

    def __init__(self, loss: float) -> None:
        self.seen: list[tuple[list[list[float]], tuple[Any, ...]]] = []
        self.saves = 0
        self.loaded: list[StateFiles] = []
        self.loss = loss
        self.train = SimpleNamespace(remote=self._train)
        self.save = SimpleNamespace(remote=self._save)
        self.load = SimpleNamespace(remote=self._load)

    async def _train(self, rows: list[Any], *carriers: Any) -> TrainReport:
        self.seen.append(([row.tolist() for row in rows], carriers))
        return report(losses={Key.LOSS_TOTAL: self.loss})

    async def _save(self) -> StateFiles:
        self.saves += 1
        return StateFiles.of({f"rank of loss {self.loss}": b"state" * self.saves})

    async def _load(self, files: StateFiles) -> int:
        self.loaded.append(files)
        return 3


@pytest.fixture
def loop(tmp_path: Path) -> Callable[..., TrainingLoop]:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.jsonl").write_text("{}\n")

    def make(ranks: list[Rank], *, groups: int = 4, **checkpoint: int) -> TrainingLoop:
        raw = {
            "kind": "offline",
            "train": {"steps": 5, "groups_per_step": groups},
            "policy": {"type": "naosd"},
            "objective": {"type": "gdpo"},
            "pools": {"path": str(tmp_path / "pool"), "group_size": 2},
            "scores": [{"name": "psnr"}],
            "learner": {"ranks": len(ranks)},
            "checkpoint": checkpoint,
            "monitor": {"progress": False},
        }
        config = validate(OfflineConfig, raw, "test")
        return TrainingLoop(config, ranks, Monitor(config.monitor, tmp_path, "run", 5, {}), tmp_path)

    return make


def test_a_group_goes_whole_to_one_rank_with_its_own_advantages(loop: Callable[..., TrainingLoop]) -> None:
    ranks = [Rank(1.0), Rank(2.0)]
    made = loop(ranks)
    advantages = np.arange(8.0).reshape(4, 2)

    async def once() -> TrainReport:
        for slot in range(4):
            made.ledger.issue(0, slot)
        return await made.train(list("abcd"), list("ABCD"), advantages, range(4))

    assert asyncio.run(once()).losses == {Key.LOSS_TOTAL: 1.5}
    assert ranks[0].seen == [([[0, 1], [2, 3]], ("a", "b", "A", "B"))]
    assert ranks[1].seen == [([[4, 5], [6, 7]], ("c", "d", "C", "D"))]
    assert (made.ledger.trained, made.ledger.pending) == (4, set())


def test_advantages_of_cells_travel_in_half_precision(loop: Callable[..., TrainingLoop]) -> None:
    """0.1 is another number in float16; those of members keep float64."""
    for shape, expected in (((2, 1), 0.1), ((2, 1, 1, 1), float(np.float16(0.1)))):
        (rank,) = ranks = [Rank(1.0)]
        made = loop(ranks, groups=2)
        for slot in range(2):
            made.ledger.issue(0, slot)
        asyncio.run(made.train(list("ab"), list("AB"), np.full(shape, 0.1), range(2)))
        assert np.ravel(rank.seen[0][0]).tolist() == [expected] * 2


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks in this process take the files themselves, not a reference to them."""
    monkeypatch.setattr(actors.training.ray, "put", lambda files: files)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_it_saves_first_on_time_and_last_and_resumes_from_the_newest(
    loop: Callable[..., TrainingLoop], tmp_path: Path, without_ray: None
) -> None:
    """Before the first step, after 2 and 4 and at the end; every rank's files come back to every rank."""
    ranks = [Rank(1.0), Rank(2.0)]
    made = loop(ranks, groups=2, every=2, keep=2)

    async def some() -> None:
        await made.begin(resume=False)
        assert kept(tmp_path) == ["step-000000"]
        for step in range(5):
            made.ledger.train([made.ledger.issue(step, slot) for slot in range(2)])
            made.ledger.issue(step + 1, 0)
            made.step = step + 1
            await made.save_if_due()
        await made.save_if_due(at_the_end=True)
        await made.save_if_due(at_the_end=True)

    asyncio.run(some())
    assert kept(tmp_path) == ["step-000004", "step-000005"], "two are kept, nothing half-written is left"
    assert [rank.saves for rank in ranks] == [4, 4]
    again = loop(ranks, groups=2)
    asyncio.run(again.begin(resume=True))
    expected = Ledger(2, 5)
    assert (again.step, again.ledger) == (5, expected), "the group in flight is to be issued again"
    for rank in ranks:
        (files,) = rank.loaded
        given = {name: files.contents[name].tobytes() for name in files.contents if name.startswith("rank")}
        assert given == {"rank of loss 1.0": b"state" * 4, "rank of loss 2.0": b"state" * 4}
    assert not again.going and not again.outcome.interrupted


def test_numbers_of_the_loop_come_back(
    loop: Callable[..., TrainingLoop], monkeypatch: pytest.MonkeyPatch, without_ray: None
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(TrainingLoop, "extra_state", lambda self: {"start/psnr": 0.1})
    monkeypatch.setattr(TrainingLoop, "take_extra_state", lambda self, state: taken.append(dict(state)))
    asyncio.run(loop([Rank(1.0)]).begin(resume=False))
    assert taken == []
    asyncio.run(loop([Rank(1.0)]).begin(resume=True))
    assert taken == [{"start/psnr": 0.1}]


def test_the_best_evaluation_is_saved_and_kept(tmp_path: Path, without_ray: None) -> None:
    """Of six evaluations the second is the best: it is saved outside of `every` and outlives the newest. A later
    process knows it. Without `best` only the newest stay."""
    data = {"path": "skimage:camera"}
    raw = {
        "kind": "online",
        "train": {"steps": 6},
        "data": data,
        "rewards": [{"name": "lr_consistency", "type": "lr_consistency"}],
        "eval": {"data": data, "every": 1},
        "checkpoint": {"every": 4, "keep": 1, "best": "lr_consistency"},
        "monitor": {"progress": False},
    }
    config = validate(RunConfig, raw, "test")
    evaluated = {1: 0.1, 2: 0.7, 3: 0.3, 4: 0.5, 5: 0.6, 6: 0.2}

    async def steps(made: TrainingLoop, *numbers: int) -> list[str]:
        for step in numbers:
            made.step = step
            made.log({Key.EVAL_MEAN.of("lr_consistency"): evaluated[step]})
            await made.save_if_due()
        return kept(tmp_path)

    def process() -> TrainingLoop:
        return TrainingLoop(config, [Rank(1.0)], Monitor(config.monitor, tmp_path, "run", 6, {}), tmp_path)

    assert asyncio.run(steps(process(), 1)) == ["step-000001"]
    assert asyncio.run(steps(process(), 2, 3)) == ["step-000002"]
    assert asyncio.run(steps(process(), 4, 5, 6)) == ["step-000002", "step-000004"]
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"best": None})})
    made = process()
    made.step = 8
    asyncio.run(made.save_if_due())
    assert kept(tmp_path) == ["step-000008"]


def test_a_stop_ends_the_loop_before_its_last_step(loop: Callable[..., TrainingLoop]) -> None:
    made = loop([Rank(1.0)])
    made.step = 3
    assert made.going
    assert made.finish()
    assert not made.going and made.outcome.interrupted and made.outcome.steps == 3


def test_there_is_nothing_to_finish_before_the_first_checkpoint(loop: Callable[..., TrainingLoop]) -> None:
    made = loop([Rank(1.0)])
    assert not made.finish() and made.going
    asyncio.run(made.begin(resume=False))
    assert made.finish() and not made.going


def test_values_are_logged_with_their_step(loop: Callable[..., TrainingLoop], tmp_path: Path) -> None:
    made = loop([Rank(1.0)])
    made.log({})
    made.step = 2
    made.log(report().values())
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (record.step, record.values["loss/total"]) == (2, 1.0)

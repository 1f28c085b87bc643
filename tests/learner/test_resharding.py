"""One checkpoint for any number of ranks and any ZeRO stage: DeepSpeed ranks on gloo, two beside the one in here."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.learner import Learner
from learner.state import LearnerState, StateFiles, rng_file
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.types import TrainGroup, adapter_digest

STAGES = (0, 1, 2)


def digests(state: LearnerState) -> dict[str, str]:
    """Of everything that the next step depends on."""
    tensors = {"adapter": state.adapter, "ema": state.ema, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
    return {
        **{name: adapter_digest(dict(arrays), "float32") for name, arrays in tensors.items()},
        **{f"published {v}": adapter_digest(dict(arrays), "float32") for v, arrays in state.published.items()},
        "counts": f"{state.version} {state.updates} {sorted(set(state.steps.values()))}",
    }


def saved(learner: Learner) -> list[StateFiles]:
    """What every rank gives, on every rank."""
    files: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(files, learner.save())
    return files


def state_of(learner: Learner) -> LearnerState:
    return LearnerState.from_files(saved(learner)[0])


def be_a_rank(rank: int, folder: Path) -> None:
    """At every stage: step, save, step; then from that checkpoint, and from one rank's, the second step again."""
    raw, steps, of_one = pickle.loads((folder / "job.pickle").read_bytes())
    seen: dict[int, Any] = {}
    for stage in STAGES:
        raw["learner"] |= {"ranks": 2, "zero_stage": stage}
        config = validate(RunConfig, raw, "test")
        whole, resumed, from_one = (Learner(config) for _ in range(3))
        whole.train([steps[0][rank]])
        torch.manual_seed(rank)
        of_ranks = saved(whole)
        drawn = torch.rand(1).item()
        both = StateFiles.of({**of_ranks[0].contents, **of_ranks[1].contents})
        whole.train([steps[1][rank]])
        torch.manual_seed(99)
        resumed.load(both)
        drawn_again = torch.rand(1).item()
        resumed.train([steps[1][rank]])
        from_one.load(of_one)
        from_one.train([steps[1][rank]])
        end = state_of(whole)
        seen[stage] = {
            "files": [sorted(files.contents) for files in of_ranks],
            "checkpoint": both,
            "uninterrupted": digests(end),
            "resumed": digests(state_of(resumed)),
            "draws": (drawn, drawn_again),
            "adapter": end.adapter,
            "adapter from one": state_of(from_one).adapter,
        }
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))
    torch.distributed.destroy_process_group()  # gloo's threads that still run when Python ends can abort it


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    from harness import free_port, rank_environment  # not above: a rank runs this file without pytest's path

    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1, free_port()).items():
            patch.setenv(name, value)
        yield


def run_two_ranks(folder: Path) -> list[dict[int, Any]]:
    from harness import free_port, rank_environment

    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env={**os.environ, **rank_environment(rank, 2, port)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


def apart(a: Any, b: Any) -> float:
    """Largest difference of two adapters."""
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def test_ranks_and_stages_may_change_between_save_and_load(
    run_config: Callable[..., RunConfig], make_group: Callable[..., TrainGroup], tmp_path: Path
) -> None:
    """The same ranks: the next step is the uninterrupted one, bit for bit, in adapter, moments, EMA and published
    adapters. 1 -> 2 and 2 -> 1 ranks, each into another stage: to rounding, 1e-5 after steps of 1e-2."""
    config = run_config("train.groups_per_step=2", "learner.optimizer.lr=0.01", "train.max_policy_lag=1")
    steps = [[make_group(2 * step + slot, version=step) for slot in (0, 1)] for step in (0, 1)]

    def alone(stage: int) -> Learner:
        section = config.learner.model_copy(update={"zero_stage": stage})
        return Learner(config.model_copy(update={"learner": section}))

    one = alone(2)
    start = dict(state_of(one).adapter)
    one.train(steps[0])
    of_one = one.save()
    one.train(steps[1])
    expected = state_of(one).adapter
    assert apart(start, expected) > 0.01
    (tmp_path / "job.pickle").write_bytes(pickle.dumps((config.model_dump(mode="json"), steps, of_one)))
    first, second = run_two_ranks(tmp_path)
    for stage in STAGES:
        a, b = first[stage], second[stage]
        assert a["uninterrupted"] == a["resumed"] == b["resumed"] == b["uninterrupted"]
        assert a["uninterrupted"]["counts"] == "2 2 [2]"
        assert a["files"][1] == [rng_file(1)], "what the ranks share travels once"
        assert [drawn == again for drawn, again in (a["draws"], b["draws"])] == [True, True]
        assert a["draws"] != b["draws"], "every rank has its own generators"
        assert apart(a["adapter"], expected) < 1e-5
        assert apart(a["adapter from one"], expected) < 1e-5
        learner = alone((stage + 1) % 3)
        learner.load(a["checkpoint"])
        learner.train(steps[1])
        assert apart(state_of(learner).adapter, expected) < 1e-5


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]))

"""Two real learner ranks (DeepSpeed, gloo): what one of them sees ends the step of both."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rl.config.load import validate
from rl.config.online import RunConfig
from rl.types import RolloutGroup, SRTask, TrainGroup, adapter_digest


def group(ordinal: int, version: int, *, broken: bool = False) -> TrainGroup:
    rng = np.random.default_rng(ordinal)
    latents = rng.standard_normal((4, 16, 2, 2)).astype(np.float32)
    latents[0, 0, 0, 0] = np.nan if broken else 0.0
    task = SRTask(ordinal, "photo", rng.integers(0, 256, (3, 8, 8), dtype=np.uint8), None, 4, 0)
    rollout = RolloutGroup(ordinal, "photo", version, "", (0, 1, 2, 3), latents, np.zeros((4, 3, 32, 32), np.uint8))
    return TrainGroup(task, rollout, rng.standard_normal(4))


def be_a_rank(rank: int, raw: dict[str, Any], out: Path) -> None:
    """A good step, then one in which only rank 1's group 3 holds a NaN; writes what this rank saw of both."""
    from learner.finite import NotFinite
    from learner.learner import Learner

    learner = Learner(validate(RunConfig, raw, "test"))

    def digest() -> str:
        return adapter_digest({name: value.detach().numpy() for name, value in learner.theta.items()}, "float32")

    seen: dict[str, Any] = {"start": digest()}
    report = learner.train([group(rank, 0)])
    seen |= {"stepped": digest(), "grad_norm": report.grad_norm}
    try:
        learner.train([group(2 + rank, 1, broken=rank == 1)])
    except NotFinite as error:
        seen |= {"error": str(error), "ordinals": error.ordinals}
    seen |= {"end": digest(), "version": learner.version}
    (out / f"{rank}.json").write_text(json.dumps(seen))


def test_a_nan_on_one_rank_stops_the_step_of_both(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Both ranks name rank 1 and its group, and keep the adapters of the last good step."""
    config = run_config(
        "learner.ranks=2", "learner.zero_stage=2", "train.groups_per_step=2", "learner.optimizer.lr=0.01"
    )
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": "0"},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["start"] != ranks[0]["stepped"] == ranks[0]["end"]
    assert (ranks[0]["ordinals"], ranks[0]["version"]) == ([3], 1)
    assert "a loss or gradient of learner rank(s) [1] is not finite on groups [3]" in ranks[0]["error"]


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    be_a_rank(int(sys.argv[1]), json.loads((folder / "recipe.json").read_text()), folder)

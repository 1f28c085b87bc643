"""Two real learner ranks (DeepSpeed, gloo): what one of them sees ends the step of both."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rl.config.load import validate
from rl.config.online import RunConfig
from rl.types import TrainGroup, adapter_digest


def be_a_rank(rank: int, folder: Path) -> None:
    """Takes the recipe and this rank's group of each of two steps from `folder`; writes what it saw of both."""
    import torch.distributed

    from learner.finite import NotFinite
    from learner.learner import Learner

    learner = Learner(validate(RunConfig, json.loads((folder / "recipe.json").read_text()), "test"))
    first, second = pickle.loads((folder / f"{rank}.pickle").read_bytes())

    def digest() -> str:
        return adapter_digest({name: value.detach().numpy() for name, value in learner.theta.items()}, "float32")

    seen: dict[str, Any] = {"start": digest()}
    report = learner.train([first])
    seen |= {"stepped": digest(), "grad_norm": report.grad_norm}
    try:
        learner.train([second])
    except NotFinite as error:
        seen |= {"error": str(error), "ordinals": error.ordinals}
    seen |= {"end": digest(), "version": learner.version}
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()  # gloo's threads that still run when Python ends can abort it


def test_a_nan_on_one_rank_stops_the_step_of_both(
    run_config: Callable[..., RunConfig], make_group: Callable[..., TrainGroup], tmp_path: Path
) -> None:
    """A good step, then one in which only rank 1's group 3 holds a NaN: both ranks name rank 1 and its group, and keep
    the adapters of the last good step."""
    from harness import free_port, rank_environment  # not above: a rank runs this file without pytest's path

    config = run_config(
        "learner.ranks=2", "learner.zero_stage=2", "train.groups_per_step=2", "learner.optimizer.lr=0.01"
    )
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    broken = make_group(3, version=1)
    latents = broken.group.latents.copy()
    latents[0, 0, 0, 0] = np.nan
    broken = replace(broken, group=replace(broken.group, latents=latents))
    steps = (make_group(0, version=0), make_group(2, version=1)), (make_group(1, version=0), broken)
    port = free_port()
    for rank in (0, 1):
        (tmp_path / f"{rank}.pickle").write_bytes(pickle.dumps(steps[rank]))
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env={**os.environ, **rank_environment(rank, 2, port)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()  # one that waits for a rank that ended would outlive the test
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["start"] != ranks[0]["stepped"] == ranks[0]["end"]
    assert (ranks[0]["ordinals"], ranks[0]["version"]) == ([3], 1)
    assert "a loss or gradient of learner rank(s) [1] is not finite on groups [3]" in ranks[0]["error"]


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]))

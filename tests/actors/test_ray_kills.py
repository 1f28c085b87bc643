"""Processes of a real Ray run are killed with SIGKILL while it goes on."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from free_processes import REWARD, free_cluster

from actors.control import MemberStatus, read_status
from actors.controller import Controller
from actors.launch import start_ray
from actors.monitor import Monitor
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.metrics import read_metrics

pytestmark = pytest.mark.ray


@dataclass
class Killer(threading.Thread):
    """Kills random processes of a run until it is told to stop, and remembers those that were alive."""

    births: Path
    every_s: float
    seed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    killed: Counter[str] = field(default_factory=Counter)
    """Role -> processes that were alive when the signal was sent and gone after it."""

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        rng = random.Random(self.seed)
        while not self.stop.wait(rng.uniform(0.5, 1.5) * self.every_s):
            born = sorted(self.births.iterdir()) if self.births.exists() else []
            if born:
                self.kill(rng.choice(born))

    def kill(self, born: Path) -> None:
        role, _, pid = born.name.rpartition("-")
        born.unlink()
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            return
        for _ in range(100):
            if not _alive(int(pid)):
                self.killed[role] += 1
                return
            time.sleep(0.02)
        raise AssertionError(f"process {pid} survived SIGKILL")


def _alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def recipe(folder: Path, steps: int, **rollout: Any) -> RunConfig:
    (folder / "free.py").write_text(REWARD)
    raw = {
        "run": {"dir": str(folder)},
        "train": {"steps": steps, "groups_per_step": 8, "max_policy_lag": 1},
        "data": {"kind": "lr", "path": "skimage:astronaut", "crop": 64},
        "rollout": {"group_size": 4, "workers": 2, **rollout},
        "rewards": [{"name": "free", "type": "python", "file": str(folder / "free.py"), "replicas": 2}],
        "fleet": {"rejoin_after_s": 0.1, "quarantine_s": 0.1},
        "monitor": {"progress": False, "sample_every": 10**6},
        "checkpoint": {"every": 10**6},
        "ray": {"num_cpus": 4},
    }
    return validate(RunConfig, raw, "test_ray_kills")


@pytest.fixture
def ray_started(tmp_path: Path) -> Iterator[None]:
    import ray

    start_ray(recipe(tmp_path, 1))
    yield
    ray.shutdown()


def run_under_fire(folder: Path, config: RunConfig, *, kills: int, every_s: float) -> tuple[Killer, Controller]:
    """Train while processes die, until so many have died and the run's steps are done."""
    killer = Killer(folder / "births", every_s)

    async def everything() -> Controller:
        cluster = free_cluster(config, killer.births, seconds=0.05)
        controller = Controller(config, cluster, Monitor(config.monitor, folder, "run", 1, {}), folder)
        killer.start()
        running = asyncio.ensure_future(controller.run(resume=False))
        while not running.done() and killer.killed.total() < kills:
            await asyncio.sleep(0.1)
        killer.stop.set()
        if not running.done():
            controller.stop.set()
        await running
        return controller

    return killer, asyncio.run(everything())


def check(folder: Path, killer: Killer, controller: Controller, kills: int) -> None:
    """Every slot once, nothing dropped, no step missing; every kill was noticed unless the run ended before."""
    ledger, steps = controller.ledger, controller.step
    assert killer.killed.total() >= kills and min(killer.killed[role] for role in ("rollout", "free")) > 0
    assert steps > 0 and ledger.trained == 8 * steps and not ledger.dropped
    records = read_metrics(folder / "metrics.jsonl")
    assert [record.step for record in records] == [*range(1, steps + 1)]
    assert all(record.values["group/dropped"] == 0 for record in records)


def test_a_run_outlives_its_workers_and_servers(tmp_path: Path, ray_started: None) -> None:
    killer, controller = run_under_fire(tmp_path, recipe(tmp_path, 4000), kills=6, every_s=1.5)
    check(tmp_path, killer, controller, 6)


def test_a_running_job_is_watched_scaled_and_stopped_from_another_shell(tmp_path: Path, ray_started: None) -> None:
    """Through the commands: a third worker joins and works, one leaves, and the run ends after its step."""

    def isrl(*words: str) -> str:
        command = [sys.executable, "-m", "actors.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def everything() -> Controller:
        config = recipe(tmp_path, 10**6)
        cluster = free_cluster(config, tmp_path / "births", seconds=0.05)
        controller = Controller(config, cluster, Monitor(config.monitor, tmp_path, "run", 1, {}), tmp_path)
        running = asyncio.ensure_future(controller.run(resume=False))
        folder = str(tmp_path)
        while controller.step == 0:
            await asyncio.sleep(0.1)
        assert await asyncio.to_thread(isrl, "scale", folder, "rollout=3") == "rollout: 2 -> 3 members\n"
        while (worker := _working(tmp_path, "rollout-2")) is None:
            await asyncio.sleep(0.1)
        assert worker.version is not None, "it has echoed an adapter"
        assert "rollout-2" in await asyncio.to_thread(isrl, "status", folder)
        left = await asyncio.to_thread(isrl, "scale", folder, "rollout=1")
        assert left == "rollout: 3 -> 1 members; those that leave finish their work first\n"
        stopped = await asyncio.to_thread(isrl, "stop", folder, "--wait")
        assert stopped.endswith("is finished and saved, then the run ends\n")
        await running
        return controller

    controller = asyncio.run(everything())
    assert controller.outcome.interrupted and controller.ledger.trained == 8 * controller.step > 0
    status = read_status(tmp_path)
    assert status.ended and [role.wanted for role in status.roles] == [1, 2] and not status.roles[0].lost


def _working(folder: Path, name: str) -> MemberStatus | None:
    """That member, once it has answered."""
    members = [member for role in read_status(folder).roles for member in role.members]
    return next((member for member in members if member.name == name and member.answered), None)


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path, ray_started: None) -> None:
    killer, controller = run_under_fire(tmp_path, recipe(tmp_path, 10**6), kills=50, every_s=1.5)
    check(tmp_path, killer, controller, 50)

"""One `isrl train`: the run's folder, Ray, the loop, and the files written at the end."""

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayError

from actors.checkpoint_files import CHECKPOINTS_DIR, newest_checkpoint
from actors.controller import Controller
from actors.deadline import reason
from actors.finish import finish
from actors.interrupts import Interrupts
from actors.launch import spawn, spawn_learners, start_ray
from actors.monitor import Monitor
from actors.offline import OfflineLoop
from actors.training import Outcome
from rl.config.load import dump_config
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig
from rl.config.training import TrainingSection
from rl.errors import InputError, RunFailed

T = TypeVar("T")


def run(config: TrainingSection, *, resume: bool) -> Outcome:
    """Start the processes, train, write the adapter and the report, stop the processes.

    Raises:
        RunFailed: an actor, a wait for one, or the disk failed permanently; the message says how to resume.
    """
    config = config.absolute(Path.cwd())
    run_dir = Path(config.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    print(f"run {config.run.name} -> {run_dir.absolute()}: starting Ray and loading models", flush=True)
    if resume and newest_checkpoint(run_dir / CHECKPOINTS_DIR) is None:
        print("--resume: run.dir holds no checkpoint, nothing was trained yet: starting anew", flush=True)
        resume = False
    interrupts = Interrupts()
    try:
        with interrupts.watched():
            start_ray(config)
            interrupts.take()
            if isinstance(config, RunConfig):
                return _online(config, run_dir, resume, interrupts)
            return _offline(config, run_dir, resume, interrupts)
    except InputError:
        raise
    except (RayError, RuntimeError, OSError) as error:
        raise RunFailed(f"run {config.run.name}: {reason(error)}; {_how_to_resume(run_dir)}") from error
    finally:
        ray.shutdown()


def _online(config: RunConfig, run_dir: Path, resume: bool, interrupts: Interrupts) -> Outcome:
    cluster = spawn(config)
    with _monitor(config, run_dir) as monitor:
        loop = Controller(config, cluster, monitor, run_dir)
        interrupts.finish_with(loop.finish)
        outcome = asyncio.run(loop.run(resume=resume))
        finish(config, run_dir, cluster.learners[0], outcome.steps)
    return outcome


def _offline(config: TrainingSection, run_dir: Path, resume: bool, interrupts: Interrupts) -> Outcome:
    if not isinstance(config, OfflineConfig):
        raise TypeError(f"run: expected an online or offline recipe, got {type(config).__name__}")
    learners = _timed(lambda: spawn_learners(config))
    with _monitor(config, run_dir) as monitor:
        loop = OfflineLoop(config, learners, monitor, run_dir)
        interrupts.finish_with(loop.finish)
        outcome = asyncio.run(loop.run(resume=resume))
        finish(config, run_dir, learners[0], outcome.steps)
    return outcome


def _timed(start: Callable[[], T]) -> T:
    started = time.perf_counter()
    processes = start()
    print(f"ready after {time.perf_counter() - started:.0f} s", flush=True)
    return processes


def _monitor(config: TrainingSection, run_dir: Path) -> "closing[Monitor]":
    return closing(
        Monitor(config.monitor, run_dir, config.run.name, config.train.steps, config.model_dump(mode="json"))
    )


def _how_to_resume(run_dir: Path) -> str:
    newest = newest_checkpoint(run_dir / CHECKPOINTS_DIR)
    if newest is None:
        return "nothing was trained yet: the same command starts again"
    return f"resume from {newest.name} with --resume"

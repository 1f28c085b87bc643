"""One `isrl train`: the run's folder, Ray, the loop, and the files written at the end."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from actors.checkpoints import CHECKPOINTS_DIR, newest_checkpoint
from actors.controller import Controller
from actors.deadline import reason
from actors.finish import finish
from actors.launch import spawn, spawn_learners, start_ray
from actors.monitor import Monitor
from actors.offline import OfflineLoop
from actors.training import Outcome
from rl.config.load import dump_config
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig
from rl.config.training import TrainingSection
from rl.errors import RunFailed

T = TypeVar("T")


def run(config: TrainingSection, *, resume: bool) -> Outcome:
    """Start the processes, train, write the adapter and the report, stop the processes.

    Raises:
        RunFailed: an actor, or a wait for one, failed permanently; the message says how to resume.
    """
    config = config.absolute(Path.cwd())
    run_dir = Path(config.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    print(f"run {config.run.name} -> {run_dir.absolute()}: starting Ray and loading models", flush=True)
    try:
        start_ray(config)
        return _online(config, run_dir, resume) if isinstance(config, RunConfig) else _offline(config, run_dir, resume)
    except (RayError, RuntimeError) as error:
        raise RunFailed(f"run {config.run.name}: {reason(error)}; {_how_to_resume(run_dir)}") from error
    finally:
        ray.shutdown()


def _online(config: RunConfig, run_dir: Path, resume: bool) -> Outcome:
    cluster = spawn(config)
    with _monitor(config, run_dir) as monitor:
        outcome = asyncio.run(_until_done_or_interrupted(Controller(config, cluster, monitor, run_dir), resume))
        finish(config, run_dir, cluster.learners[0], outcome.steps)
    return outcome


def _offline(config: TrainingSection, run_dir: Path, resume: bool) -> Outcome:
    if not isinstance(config, OfflineConfig):
        raise TypeError(f"run: expected an online or offline recipe, got {type(config).__name__}")
    learners = _timed(lambda: spawn_learners(config))
    with _monitor(config, run_dir) as monitor:
        outcome = asyncio.run(_until_done_or_interrupted(OfflineLoop(config, learners, monitor, run_dir), resume))
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
        return "there is no checkpoint yet: start again with another run.dir"
    return f"resume from {newest.name} with --resume"


async def _until_done_or_interrupted(controller: Controller | OfflineLoop, resume: bool) -> Outcome:
    """The first interrupt lets the current step finish and be saved; the second stops at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def interrupt(*_: Any) -> None:
        if controller.stop.is_set() and task is not None:
            task.cancel()
        controller.stop.set()
        print("interrupt: finishing and saving the step in progress; press again to stop at once", flush=True)

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, interrupt)
    try:
        return await controller.run(resume=resume)
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(sign)

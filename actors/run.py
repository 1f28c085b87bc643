"""One `isrl train`: the run's folder, Ray, the loop, and what is written at the end."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.checkpoints import CHECKPOINTS_DIR, newest_checkpoint
from actors.controller import Controller, Outcome
from actors.deadline import reason
from actors.finish import finish
from actors.launch import Cluster, spawn, start_ray
from actors.monitor import Monitor
from rl.config.load import dump_config
from rl.config.run import RunConfig
from rl.errors import RunFailed


def run(config: RunConfig, *, resume: bool) -> Outcome:
    """Start the processes, train, write the adapter and the report, stop the processes.

    Raises:
        RunFailed: an actor or a wait for one failed for good; the message says how to go on.
    """
    config = config.absolute(Path.cwd())
    run_dir = Path(config.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    started = time.perf_counter()
    print(f"run {config.run.name} -> {run_dir.absolute()}: starting Ray and loading models", flush=True)
    try:
        start_ray(config)
        cluster = spawn(config)
        print(f"ready after {time.perf_counter() - started:.0f} s", flush=True)
        return _train(config, cluster, run_dir, resume=resume)
    except (RayError, RuntimeError) as error:
        raise RunFailed(f"run {config.run.name}: {reason(error)}; {_how_to_go_on(run_dir)}") from error
    finally:
        ray.shutdown()


def _train(config: RunConfig, cluster: Cluster, run_dir: Path, *, resume: bool) -> Outcome:
    monitor = Monitor(config.monitor, run_dir, config.run.name, config.train.steps, config.model_dump(mode="json"))
    try:
        controller = Controller(config, cluster, monitor, run_dir)
        outcome = asyncio.run(_until_done_or_interrupted(controller, resume=resume))
        finish(config, run_dir, cluster, outcome.steps)
    finally:
        monitor.close()
    return outcome


def _how_to_go_on(run_dir: Path) -> str:
    newest = newest_checkpoint(run_dir / CHECKPOINTS_DIR)
    if newest is None:
        return "there is no checkpoint yet: start again with another run.dir"
    return f"go on from {newest.name} with --resume"


async def _until_done_or_interrupted(controller: Controller, *, resume: bool) -> Outcome:
    """The first interrupt lets the step in progress end and be saved; the second one stops at once."""
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

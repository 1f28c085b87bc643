"""One command line, started again after every way to lose a process: real Ray, real DeepSpeed, real signals."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from actors.checkpoint_files import newest_checkpoint
from actors.checkpoints import open_checkpoint
from rl.metrics import Key, read_metrics

START_S, STOP_S = 300, 200
STEPS = 24
Process = subprocess.Popen[bytes]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


@dataclass
class Run:
    """`isrl train RECIPE --resume`, as often as it takes."""

    recipe: Path
    folder: Path
    log: Path

    def steps(self) -> list[int]:
        metrics = self.folder / "metrics.jsonl"
        records = read_metrics(metrics) if metrics.exists() else ()
        return [record.step for record in records if Key.LOSS_TOTAL in record.values]

    def start(self) -> Process:
        command = [sys.executable, "-m", "actors.cli", "train", str(self.recipe), f"run.dir={self.folder}", "--resume"]
        with self.log.open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def started_and_stepped(self) -> Process:
        """Returns while a step is in progress."""
        process = self.start()
        deadline = time.monotonic() + START_S
        while not re.search(r"^step \d+/", self.log.read_text(), re.MULTILINE):
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return process


def ranks_of(process: Process) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in children if any("LearnerActor" in word for word in child.cmdline())]
    assert len(ranks) == 2
    return ranks


def kill_a_rank(run: Run, process: Process) -> None:
    ranks_of(process)[1].kill()


def kill_the_driver(run: Run, process: Process) -> None:
    process.kill()


def terminate(run: Run, process: Process) -> None:
    process.terminate()


def press_ctrl_c(run: Run, process: Process) -> None:
    """The terminal sends it to the whole group."""
    os.killpg(process.pid, signal.SIGINT)


def press_ctrl_c_twice(run: Run, process: Process) -> None:
    press_ctrl_c(run, process)
    time.sleep(0.01)
    press_ctrl_c(run, process)


def fill_the_disk(run: Run, process: Process) -> None:
    """The run's own small one, until the run has ended."""
    ballast = run.folder / "ballast"
    while process.poll() is None:
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        time.sleep(0.01)
    ballast.unlink()


FAULTS: dict[Callable[[Run, Process], None], tuple[int, str]] = {
    kill_a_rank: (1, "; resume from step-"),
    terminate: (130, ", which is saved; resume with --resume"),
    kill_the_driver: (-signal.SIGKILL, ""),
    press_ctrl_c_twice: (130, "interrupt: stopped at once; the newest checkpoint is whole"),
    fill_the_disk: (1, "No space left on device"),
    press_ctrl_c: (130, ", which is saved; resume with --resume"),
}
"""What happens to a run in the middle of a step -> its exit code, and what it says."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB in memory, which root alone may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_the_same_command_ends_with_the_same_adapter_whatever_happened(
    isrl_train: Callable[..., None], adapter_facts: Callable[[Path], dict[str, Any]], write_pool: Callable[..., Path],
    tiny_sd21_folder: Path, tmp_path: Path, small_disk: Path,
) -> None:  # fmt: skip
    """Two ranks, ZeRO-2. Every fault fires, ends with its own exit code and line, leaves a whole newest checkpoint and
    no rank; every step is there once, and the adapter equals the uninterrupted run's bit for bit."""
    raw = {
        "kind": "offline", "run": {"dir": str(tmp_path / "whole")}, "train": {"steps": STEPS, "groups_per_step": 2},
        "policy": {"type": "naosd", "path": str(tiny_sd21_folder), "lora": {"rank": 2, "alpha": 4}},
        "objective": {"type": "gdpo"}, "learner": {"ranks": 2, "updates_per_batch": 1, "micro_batch": 2},
        "pools": {"path": str(write_pool(tmp_path / "pool", images=3)), "group_size": 3}, "scores": [{"name": "psnr"}],
        "checkpoint": {"every": 3, "keep": 2},
    }  # fmt: skip
    recipe = tmp_path / "offline.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    isrl_train(str(recipe))
    run = Run(recipe, small_disk / "run", tmp_path / "log")
    for fault, (code, message) in FAULTS.items():
        process = run.started_and_stepped()
        ranks = ranks_of(process)
        fault(run, process)
        assert process.wait(STOP_S) == code, run.log.read_text()
        said = run.log.read_text()
        assert message in said.replace("\n", " "), said
        _, alive = psutil.wait_procs(ranks, timeout=30)
        assert alive == [], f"after {fault.__name__}"
        newest = newest_checkpoint(run.folder / "checkpoints")
        assert newest is not None
        done = open_checkpoint(newest)[0].step
        assert done < STEPS, "the run was over before the fault"
        if code == 130 and "saved" in message:
            assert run.steps()[-1] == done, "the step in progress is saved"
    process = run.start()
    assert process.wait(START_S) == 0, run.log.read_text()
    assert run.steps() == [*range(1, STEPS + 1)]
    assert adapter_facts(run.folder)["digest"] == adapter_facts(tmp_path / "whole")["digest"]

"""SIGINT and SIGTERM, sent to real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from actors.interrupts import Interrupts

interrupts, stop = Interrupts(), []
with interrupts.watched():
    if "ready" in sys.argv:
        interrupts.finish_with(lambda: not stop.append("finish"))
    if "starting" in sys.argv:
        interrupts.finish_with(lambda: False)
    print("waiting", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (stop and "patient" in sys.argv):
        time.sleep(0.01)
print(stop, flush=True)
"""


def started(*words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    return process


FINISHING = "interrupt: finishing and saving the step in progress; press again to stop at once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_lets_the_step_finish(number: signal.Signals) -> None:
    process = started("ready", "patient")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "['finish']\n", FINISHING)


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_the_second_ends_at_once_with_130(numbers: tuple[signal.Signals, ...]) -> None:
    process = started("ready")
    process.send_signal(numbers[0])
    assert process.stderr is not None and process.stderr.readline() == FINISHING
    sent = time.monotonic()
    process.send_signal(numbers[1])
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 2
    assert (process.returncode, out) == (130, "")
    assert err == "interrupt: stopped at once; the newest checkpoint is whole\n"


@pytest.mark.parametrize("words", [(), ("starting",)])
def test_there_is_nothing_to_wait_for_while_starting(words: tuple[str, ...]) -> None:
    process = started(*words)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0 and out == ""
    assert err.startswith("interrupt: stopped while starting, nothing is lost") and "KeyboardInterrupt" in err

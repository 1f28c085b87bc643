"""A job steered through files in its folder: whole files, answers, and refusals that say what to do."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.autoscale import Autoscaler
from actors.control import (
    CONTROL_DIR,
    STATUS_FILE,
    ControlPanel,
    MemberStatus,
    Request,
    RoleStatus,
    RunStatus,
    ask,
    gone,
    read_status,
)
from rl.config.rollout import AutoscaleSection
from rl.errors import InputError

MEMBER = MemberStatus("rollout-0", "ready", 2, 40, 65.0, 7, 0)
ROLE = RoleStatus("rollout", 1, 3, (MEMBER,), ("rollout-9: died",))


def status(**changes: Any) -> RunStatus:
    facts = {
        "written_at": time.time(), "host": "here", "pid": 4, "run": "mini", "step": 8, "steps": 10, "pushed": 7,
        "push_s": 0.25, "seconds": {"time/train_s": 1.5}, "roles": (ROLE,), **changes,
    }  # fmt: skip
    return RunStatus(**facts)


@contextmanager
def driver(folder: Path, scale: Callable[[str, int], str] = lambda role, n: f"{role}: {n}") -> Iterator[list[str]]:
    """A panel that looks for requests; what it was told to do."""
    told: list[str] = []

    def record(role: str, wanted: int) -> str:
        told.append(f"{role}={wanted}")
        return scale(role, wanted)

    panel = ControlPanel(folder, status, record, lambda: told.append("stop") or "it ends")  # type: ignore[func-returns-value]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            panel.once()

    panel.once()
    thread = threading.Thread(target=look)
    thread.start()
    yield told
    done.set()
    thread.join()


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    with driver(tmp_path):
        read = read_status(tmp_path)
    assert read.roles == (ROLE,) and (read.step, read.pushed, read.seconds) == (8, 7, {"time/train_s": 1.5})


def test_a_request_is_answered_once_and_leaves_nothing(tmp_path: Path) -> None:
    with driver(tmp_path) as told:
        assert ask(tmp_path, Request({"rollout": 3, "reward.free": 2})) == ["rollout: 3", "reward.free: 2"]
        assert ask(tmp_path, Request({}, stop=True)) == ["it ends"]
    assert told == ["rollout=3", "reward.free=2", "stop"] and not [*(tmp_path / CONTROL_DIR).iterdir()]


def test_what_a_run_refuses_is_told_beside_what_it_did(tmp_path: Path) -> None:
    def scale(role: str, wanted: int) -> str:
        if role == "rollouts":
            raise InputError("role rollouts: expected one of rollout, reward.free")
        return f"{role}: {wanted}"

    with driver(tmp_path, scale), pytest.raises(InputError, match="^rollout: 2\nrole rollouts: expected one of"):
        ask(tmp_path, Request({"rollout": 2, "rollouts": 2}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"written_at": 1e9}, r"its driver \(process 4 on here\) was last heard \d+ s ago; the run has ended or hangs"),
        ({"ended": True}, "the run has ended after step 8 of 10"),
    ],
)
def test_nobody_is_asked_where_nobody_runs(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    panel = ControlPanel(tmp_path, lambda: status(**changes), lambda *_: "", lambda: "")
    panel.once()
    assert gone(tmp_path)
    with pytest.raises(InputError, match=says):
        ask(tmp_path, Request({"rollout": 2}))


def test_a_folder_without_a_status_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"expected {STATUS_FILE} of an online run, found none"):
        read_status(tmp_path)


def test_the_command_shows_members_queues_and_losses(tmp_path: Path, isrl: Any, capsys: Any) -> None:
    ControlPanel(tmp_path, status, lambda *_: "", lambda: "").once()
    assert isrl("status", tmp_path) == 0
    shown = capsys.readouterr().out
    for text in (
        "mini: step 8 of 10, driver 4 on here\n",
        "version 7 pushed in 0.25 s",
        "rollout-0",
        "65 s",
        "lost: roll",
    ):
        assert text in shown
    raw = json.loads((tmp_path / STATUS_FILE).read_text())
    (tmp_path / STATUS_FILE).write_text(json.dumps({**raw, "written_at": 1e9}))
    isrl("status", tmp_path)
    assert "s ago: killed or hanging" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["rollout"], ["rollout=x"], ["=3"]])
def test_a_malformed_wish_is_refused_with_an_example(tmp_path: Path, isrl: Any, capsys: Any, words: list[str]) -> None:
    assert isrl("scale", tmp_path, *words) == 2
    assert "expected ROLE=N such as rollout=3" in capsys.readouterr().err


def scaled(idle: list[tuple[float, float]], **section: Any) -> list[int]:
    """Workers after each step with the given idle shares of learner and workers, from 2 on."""
    scaler, workers, found = Autoscaler(AutoscaleSection.model_validate({"max": 4, "patience": 2, **section})), 2, []
    for learner, rollout in idle:
        workers = scaler.after_step(workers, learner, rollout)
        found.append(workers)
    return found


def test_a_waiting_learner_gets_workers_and_waiting_workers_leave() -> None:
    assert scaled([(0.9, 0.0)] * 6) == [2, 3, 3, 4, 4, 4]
    assert scaled([(0.0, 0.9)] * 4) == [2, 1, 1, 1]


def test_it_takes_steps_in_a_row() -> None:
    assert scaled([(0.9, 0.0), (0.1, 0.1), (0.9, 0.0), (0.0, 0.9), (0.9, 0.0)]) == [2] * 5


def test_more_workers_do_not_help_where_rewards_hold_up_both() -> None:
    assert scaled([(0.9, 0.9)] * 5) == [2] * 5


def test_the_bounds_hold_from_the_first_step_on() -> None:
    assert scaled([(0.1, 0.1)], min=3) == [3]

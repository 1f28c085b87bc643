"""A running job seen and steered from another shell, through two kinds of files in its folder. They need no port and
work wherever the folder can be seen, and every file appears whole.

    status.json                  written by the driver every two seconds
    control/REQUEST.json         written by a command; the driver answers in REQUEST.answer.json
"""

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rl.errors import InputError, MissingInput

STATUS_FILE, CONTROL_DIR = "status.json", "control"
EVERY_S = 2.0
SILENT_S = 15.0
"""A driver that wrote nothing for so long is dead, or hangs."""
ANSWER_S = 15.0


@dataclass(frozen=True)
class MemberStatus:
    """One process."""

    name: str
    state: str
    calls: int
    answered: int
    age_s: float
    version: int | None
    """Of the adapter that it echoed last; None for roles without one."""
    strikes: int


@dataclass(frozen=True)
class RoleStatus:
    """One role."""

    name: str
    wanted: int
    queued: int
    """Groups that no member works on yet."""
    members: tuple[MemberStatus, ...]
    lost: tuple[str, ...]
    """The newest losses, one line each."""


@dataclass(frozen=True)
class RunStatus:
    """A run as its driver sees it."""

    written_at: float
    """Seconds since 1970."""
    host: str
    pid: int
    run: str
    step: int
    steps: int
    pushed: int | None
    """Version that every ready worker holds; None before the first push."""
    push_s: float
    """Time of the last push."""
    seconds: Mapping[str, float]
    """Stage -> seconds in the last step."""
    roles: tuple[RoleStatus, ...]
    ended: bool = False
    """The driver has stopped in order, whether done, interrupted or failed."""


def write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def read_status(run_dir: Path) -> RunStatus:
    """What the driver wrote last.

    Raises:
        MissingInput: there is no status: not a run's folder, or an offline run, which has no processes to steer.
    """
    path = run_dir / STATUS_FILE
    if not path.is_file():
        raise MissingInput(f"{run_dir}: expected {STATUS_FILE} of an online run, found none; is this a run's folder?")
    raw = json.loads(path.read_text(encoding="utf-8"))
    roles = tuple(
        RoleStatus(
            **{**role, "members": tuple(MemberStatus(**one) for one in role["members"]), "lost": tuple(role["lost"])}
        )
        for role in raw.pop("roles")
    )
    return RunStatus(**raw, roles=roles)


@dataclass(frozen=True)
class Request:
    """What a command asks of a driver: members wanted per role, or an end after the step in progress."""

    scale: Mapping[str, int]
    stop: bool = False


class ControlPanel:
    """The driver's side.

    Args:
        status: the run as it is now.
        scale: makes a role have so many members; returns what it did, or raises `InputError`.
        stop: ends the run after its step.
    """

    def __init__(
        self, run_dir: Path, status: Callable[[], RunStatus], scale: Callable[[str, int], str], stop: Callable[[], str]
    ) -> None:
        self._run_dir = run_dir
        self._status, self._scale, self._stop = status, scale, stop

    async def run(self) -> None:
        """Write and answer for as long as the run lasts."""
        try:
            while True:
                self.once()
                await asyncio.sleep(EVERY_S)
        finally:
            self._write(replace(self._status(), ended=True))

    def once(self) -> None:
        for path in sorted((self._run_dir / CONTROL_DIR).glob("*.json")):
            if not path.name.endswith(".answer.json"):
                answer = self._answer(Request(**json.loads(path.read_text(encoding="utf-8"))))
                path.unlink()
                write_whole(path.with_suffix(".answer.json"), json.dumps(answer))
        self._write(self._status())

    def _write(self, status: RunStatus) -> None:
        write_whole(self._run_dir / STATUS_FILE, json.dumps(asdict(status)))

    def _answer(self, request: Request) -> dict[str, list[str]]:
        done, refused = [], []
        for role, wanted in request.scale.items():
            try:
                done.append(self._scale(role, wanted))
            except InputError as error:
                refused.append(str(error))
        if request.stop:
            done.append(self._stop())
        return {"done": done, "refused": refused}


def ask(run_dir: Path, request: Request) -> Sequence[str]:
    """Send a request to a run and wait for what it did.

    Raises:
        InputError: nobody runs there, nobody answered, or the run refused.
    """
    status = read_status(run_dir)
    silent = time.time() - status.written_at
    if status.ended:
        raise InputError(f"{run_dir}: the run has ended after step {status.step} of {status.steps}")
    if silent > SILENT_S:
        raise InputError(
            f"{run_dir}: its driver (process {status.pid} on {status.host}) was last heard {silent:.0f} s ago; the run "
            "has ended or hangs"
        )
    path = run_dir / CONTROL_DIR / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
    write_whole(path, json.dumps(asdict(request)))
    answered = path.with_suffix(".answer.json")
    until = time.monotonic() + ANSWER_S
    while not answered.is_file():
        if time.monotonic() > until:
            path.unlink(missing_ok=True)
            raise InputError(f"{run_dir}: no answer within {ANSWER_S:g} s; see isrl status {run_dir}")
        time.sleep(0.1)
    answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    answered.unlink()
    if answer["refused"]:
        raise InputError("\n".join([*answer["done"], *answer["refused"]]))
    done: Sequence[str] = answer["done"]
    return done


def here() -> tuple[str, int]:
    """Host and process."""
    return socket.gethostname(), os.getpid()


def gone(run_dir: Path) -> bool:
    """Whether the driver has ended, or writes no more."""
    status = read_status(run_dir)
    return status.ended or time.time() - status.written_at > SILENT_S

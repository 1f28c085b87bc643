"""The command line, in this process and in one of its own, and what its runs leave."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from actors import cli
from actors.role import Recipe, Role
from actors.tasks import Alarm
from rl.config.fleet import FleetSection
from rl.export import read_lora_header

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def role_of() -> Callable[..., Role]:
    """A role whose members are ready, one per handle; a lost one is replaced by the next of `more`. Inside a loop."""

    def make(name: str, *handles: Any, more: Iterable[Any] = (), alarm: Alarm | None = None, **fields: Any) -> Role:
        coming, dismissed = iter(more), fields.pop("dismissed", [])
        settings = FleetSection.model_validate(fields.pop("settings", {}))
        recipe = Recipe(name, len(handles), lambda: next(coming), dismissed.append, **fields)
        role = Role(recipe, settings, alarm or Alarm(), say=lambda line: None)
        role.adopt(handles)
        return role

    return make


@pytest.fixture
def isrl(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `isrl ARGUMENTS` in this process; returns the exit code."""

    def command(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["isrl", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as done:
            return int(done.code or 0)
        return 0

    return command


@pytest.fixture(scope="session")
def isrl_train() -> Callable[..., None]:
    """Runs `isrl train ARGUMENTS` in a process of its own, which has to end with exit code 0."""

    def command(*arguments: str, cwd: Path = ROOT, timeout_s: float = 500) -> None:
        train = [sys.executable, "-m", "actors.cli", "train", *arguments]
        done = subprocess.run(train, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return command


@pytest.fixture(scope="session")
def quickstart() -> tuple[str, ...]:
    """The recipe and what makes it tiny. One reward without pyiqa, whose import takes as long as a step here; the tests
    of objectives add it."""
    return (
        f"{ROOT}/configs/quickstart.yaml",
        "train={groups_per_step: 2, max_policy_lag: 0}", "rollout={group_size: 3, sampler: {steps: 3}}",
        "data={path: 'skimage:astronaut', crop: 64}", "eval={data: {path: 'skimage:coffee', crop: 64}, crops: 2}",
        "rewards=[{name: lr_consistency, type: lr_consistency}]", "learner={ranks: 1, updates_per_batch: 2}",
        "checkpoint.every=2", "monitor.sample_every=2",
    )  # fmt: skip


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], list[dict[str, float]]]:
    """All records of a run's metrics, in the order in which they were written."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def trained_steps(logged: Callable[[Path], list[dict[str, float]]]) -> Callable[[Path], list[dict[str, float]]]:
    """The records of its training steps, without those of its evaluations."""
    return lambda run: [record for record in logged(run) if "loss/total" in record]


@pytest.fixture(scope="session")
def adapter_facts() -> Callable[[Path], dict[str, Any]]:
    """What a run says of its adapter in the file's header."""
    return lambda run: read_lora_header(run / "lora" / "pytorch_lora_weights.safetensors")["isrl"]

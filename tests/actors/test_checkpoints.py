"""A checkpoint on disk is whole or absent: what is written is read; no damage, full disk or killed process passes."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from actors.checkpoint_files import (
    MANIFEST,
    NotSaved,
    NotWhole,
    checkpoint_of,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from actors.checkpoints import Checkpoints, ControllerState, open_checkpoint
from learner.state import LearnerState, StateFiles, rng_file
from rl.config.training import CheckpointSection

ROOT = Path(__file__).parents[2]


def controller(step: int, **changes: Any) -> ControllerState:
    values: dict[str, Any] = {
        "step": step, "ledger": {"groups_per_step": 2, "steps": step}, "extra": {"start/psnr": 0.1}, "scores": {},
        "run": {"config": {"seed": 0}, "files": {}},
    }  # fmt: skip
    return ControllerState(**{**values, **changes})


def learner_state(seed: int = 0) -> LearnerState:
    rng = np.random.default_rng(seed)

    def adapter() -> dict[str, Any]:
        shapes = {"net.a.lora_A.weight": (2, 5), "net.a.lora_B.weight": (3, 2)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    moments = adapter(), adapter(), dict.fromkeys(adapter(), 7)
    return LearnerState(3, 7, "reference", adapter(), *moments, adapter(), {2: adapter(), 3: adapter()})


class Ranks:
    """Two ranks as the driver sees them."""

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        for rank in (0, 1):
            yield SimpleNamespace(save=SimpleNamespace(remote=lambda rank=rank: self._save(rank)))

    async def _save(self, rank: int) -> StateFiles:
        shared = {**learner_state().files(), "bulk": bytes(self.size)} if rank == 0 else {}
        return StateFiles.of({rng_file(rank): b"{}", **shared})


def save(folder: Path, step: int, *, size: int = 0, **changes: Any) -> Path:
    checkpoints = Checkpoints(folder, CheckpointSection())
    return asyncio.run(checkpoints.save(controller(step, **changes), [*Ranks(size)], 60))


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


FLOATS = arrays(np.float32, array_shapes(max_dims=2, max_side=3))
ADAPTERS = st.dictionaries(st.text("ab.", min_size=1, max_size=4), FLOATS, max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.tuples(ADAPTERS, ADAPTERS, ADAPTERS, ADAPTERS), st.dictionaries(st.integers(0, 99), ADAPTERS, max_size=2))
def test_any_state_becomes_files_and_back(parts: tuple[Any, ...], published: dict[int, Any]) -> None:
    """Signed zeros, NaNs, empty adapters: bit for bit."""
    adapter, exp_avg, exp_avg_sq, ema = parts
    state = LearnerState(1, 2, None, adapter, exp_avg, exp_avg_sq, {"a": 5}, ema, published)
    again = LearnerState.from_files(StateFiles.of(state.files()))
    assert (again.version, again.updates, again.reference_digest, dict(again.steps)) == (1, 2, None, {"a": 5})
    for name in ("adapter", "exp_avg", "exp_avg_sq", "ema"):
        assert same(getattr(again, name), getattr(state, name))
        assert all(v.tobytes() == getattr(again, name)[k].tobytes() for k, v in getattr(state, name).items())
    assert again.published.keys() == published.keys()
    assert all(same(again.published[version], published[version]) for version in published)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-c]{1,3}\.[a-c-]{1,4}", fullmatch=True), st.binary(), max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> None:
    checkpoint = tmp_path_factory.mktemp("run") / "step-000001"
    write_checkpoint(checkpoint, StateFiles.of(contents))
    assert {name: content.tobytes() for name, content in read_checkpoint(checkpoint).contents.items()} == contents
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step-000001"]


def test_a_saved_run_is_opened_equal(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 7, scores={"psnr": 0.25})
    state, files = open_checkpoint(checkpoint)
    assert state == controller(7, scores={"psnr": 0.25})
    assert {rng_file(0), rng_file(1), "learner.json"} < files.contents.keys()
    again, expected = LearnerState.from_files(files), learner_state()
    assert same(again.adapter, expected.adapter) and same(again.published[2], expected.published[2])


NAMES = [
    MANIFEST, "controller.json", "learner.json", "adapter.safetensors", "exp_avg.safetensors",
    "exp_avg_sq.safetensors", "ema.safetensors", "published-2.safetensors", "published-3.safetensors", rng_file(0),
    rng_file(1),
]  # fmt: skip


def test_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    assert sorted(path.name for path in save(tmp_path, 1).iterdir()) == sorted([*NAMES, "bulk"])


@pytest.mark.parametrize("name", NAMES)
def test_every_damaged_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    """A byte flipped anywhere, a file cut short anywhere, or gone; the message says what to do, and undone it opens."""
    save(tmp_path, 1)
    checkpoint = save(tmp_path, 2)
    path = checkpoint / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, len(whole) - 1, *map(int, rng.integers(0, len(whole), 20))}
    damages = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    damages += [whole[:at] for at in places] + [whole + b"\0"]
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(NotWhole, match=f"{path}: expected .*to resume from step-000001, remove {checkpoint}"):
            open_checkpoint(checkpoint)
    path.unlink()
    with pytest.raises(NotWhole, match=f"{path}: no such file; to resume from step-000001, remove {checkpoint}"):
        open_checkpoint(checkpoint)
    path.write_bytes(whole)
    assert open_checkpoint(checkpoint)[0].step == 2


def test_an_older_snapshot_under_a_newer_name_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 4).rename(tmp_path / "step-000009")
    with pytest.raises(NotWhole, match=r"step-000009/controller.json: expected step 9, got 4"):
        open_checkpoint(tmp_path / "step-000009")


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 4)
    text = (checkpoint / MANIFEST).read_text()
    (checkpoint / MANIFEST).write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(NotWhole, match="expected format 1, got 2, which another version of isrl wrote"):
        open_checkpoint(checkpoint)


def test_steps_are_numbers_not_names(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000000.bak"):
        (tmp_path / name).mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step-1000000"
    assert checkpoint_of(tmp_path, 1_000_000).name == "step-1000000"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """One mebibyte of memory as a file system; root alone may mount it."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def the_older_one_is_whole(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["step-000001"]
    assert open_checkpoint(folder / "step-000001")[0].step == 1


def test_a_file_that_cannot_grow_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with (
        largest_file(1 << 16),
        pytest.raises(NotSaved, match=r"step-000002 was not saved: expected to write 1\d{5} bytes, File too large"),
    ):
        save(tmp_path, 2, size=100_000)
    the_older_one_is_whole(tmp_path)
    save(tmp_path, 2, size=100_000)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """Says how much was to be written and how much was; with room again the same step is saved."""
    with small_disk(tmp_path):
        save(tmp_path, 1)
        (tmp_path / "step-000001" / "kept").touch()
        message = r"expected to write 2\d{6} bytes, No space left on device after \d{5,7}; \d+ bytes are free in"
        with pytest.raises(NotSaved, match=message):
            save(tmp_path, 2, size=2_000_000)
        the_older_one_is_whole(tmp_path)
        save(tmp_path, 2, size=100_000)


KILLED = """
import asyncio, sys, time
from pathlib import Path
from test_checkpoints import save

def stop(self, target):
    print("all is written", flush=True)
    time.sleep(600)

folder, when = Path(sys.argv[1]), sys.argv[2]
if when == "before the rename":
    Path.rename = stop
save(folder, 2, size=50_000_000)
print("saved", flush=True)
"""


def start_saving(folder: Path, when: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "actors")])
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), when],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def test_a_process_killed_between_write_and_rename_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    process = start_saving(tmp_path, "before the rename")
    assert process.stdout is not None and process.stdout.readline() == "all is written\n"
    kill(process)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["partial-step-000002", "step-000001"], "killed with everything written"
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and open_checkpoint(newest)[0].step == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003"], "and swept up"


def test_a_process_killed_while_writing_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    """At three moments, of which the last comes after the save."""
    save(tmp_path, 1)
    killed = 0
    for wait_s in (0.0, 0.03, 60.0):
        folder = tmp_path / f"{wait_s}"
        shutil.copytree(tmp_path / "step-000001", folder / "step-000001")
        process = start_saving(folder, "at any time")
        while not (folder / "partial-step-000002").exists() and process.poll() is None:
            pass
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            kill(process)
            killed += 1
        newest = newest_checkpoint(folder)
        assert newest is not None and open_checkpoint(newest)[0].step in (1, 2)
        assert open_checkpoint(folder / "step-000001")[0].step == 1
    assert newest.name == "step-000002" and killed > 0


def test_a_rank_that_dies_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    async def dies() -> StateFiles:
        raise RuntimeError("the actor died")

    save(tmp_path, 1)
    ranks = [*Ranks(), SimpleNamespace(save=SimpleNamespace(remote=dies))]
    with pytest.raises(RuntimeError, match="the actor died"):
        asyncio.run(Checkpoints(tmp_path, CheckpointSection()).save(controller(2), ranks, 60))
    the_older_one_is_whole(tmp_path)

"""Every benchmark at a size of seconds: it runs on this code and prints its row. What the rows say means nothing here.

The slow ones start whole runs: `uv run pytest tests/benchmarks -m slow`, or each alone with `--smoke`.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
NUMBER = re.compile(r"[-+]?\d+\.\d+")

HERE_ALONE = {
    "bare_loop": (
        "configs/quickstart.yaml", "train={steps: 1, groups_per_step: 1}", "rollout.group_size=2", "data.crop=64",
        "eval=null",
    ),
    "bench_anchor": ("{out}/anchor.jsonl", "--smoke"),
    "bench_cells": ("--smoke",),
    "bench_locality": ("--smoke",),
    "bench_memory": ("--smoke",),
    "bench_naosd_full": ("--smoke", "--side", "64", "--group", "2"),
    "bench_objectives": ("--smoke",),
    "bench_reward_path": ("--smoke", "--metrics", "psnr", "--rounds", "1"),
    "bench_separability": ("{out}/separability.png", "--smoke"),
    "bench_zero": ("--smoke",),
    "reward_candidates": ("--smoke",),
}  # fmt: skip
WITH_SHARED_DATA = {
    "bench_base_quality": ("{out}/base", "--smoke"),
    "bench_gdpo_curves": ("{out}/gdpo", "one_crop", "--smoke"),
    "bench_gdpo_gradients": ("{out}/gdpo", "fidelity", "--smoke"),
    "bench_gdpo_tables": ("{out}/gdpo", "--smoke"),
    "bench_spatial": ("run", "{out}/spatial", "--smoke"),
    "bench_t_add": ("{out}/t_add", "--smoke"),
    "bench_vae_start": ("near_identity", "--smoke"),
}
"""These read weights and photographs that are not part of the repository."""
ON_RAY = {
    "bench_loop_overhead": ("--smoke",),
    "bench_learning": ("{out}/learning", "--smoke"),
    "bench_overlap": ("--smoke",),
    "bench_push": ("--smoke",),
}
"""In a process of their own: Ray's workers import the file from its folder."""
QUICK_ON_RAY = ("bench_loop_overhead",)


@pytest.fixture
def own_settings() -> Iterator[None]:
    """What a benchmark sets for its process is set back."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    os.environ.clear()
    os.environ.update(variables)


def arguments(given: tuple[str, ...], out: Path) -> list[str]:
    return [argument.format(out=out) if "{out}" in argument else argument for argument in given]


def check(printed: str) -> None:
    """Rows were printed, and all numbers in them are finite."""
    assert NUMBER.search(printed), printed
    assert not re.search(r"\b(nan|inf)\b", printed), printed


@pytest.mark.parametrize("name", HERE_ALONE)
def test_here(name: str, tmp_path: Path, own_settings: None, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(name).main(arguments(HERE_ALONE[name], tmp_path))
    check(capsys.readouterr().out)


@pytest.mark.parametrize("name", WITH_SHARED_DATA)
def test_with_shared_data(
    name: str, shared_data: Path, tmp_path: Path, own_settings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module(name).main(arguments(WITH_SHARED_DATA[name], tmp_path))
    check(capsys.readouterr().out)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [name if name in QUICK_ON_RAY else pytest.param(name, marks=pytest.mark.slow) for name in ON_RAY]
)
def test_on_ray(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments(ON_RAY[name], tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check(done.stdout)


def test_every_benchmark_has_a_smoke() -> None:
    scripts = {path.stem for path in HERE.glob("[!t]*.py") if "def main" in path.read_text(encoding="utf-8")}
    assert scripts == HERE_ALONE.keys() | WITH_SHARED_DATA.keys() | ON_RAY.keys()

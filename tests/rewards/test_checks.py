"""Refusals at config time: fast, torch-free, and in words that help."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from rewards import BUILDERS, check_reward
from rewards.catalog import MIN_SIDE, NOT_PER_IMAGE, metric_facts, metric_names
from rl.config.reward import RewardConfig


def check(metric: str = "psnr", has_hr: bool = True, sr_side: int | None = 256, **fields: Any) -> None:
    fields = {"type": "pyiqa", "metric": metric} | fields
    check_reward(RewardConfig(name="r", **fields), has_hr=has_hr, sr_side=sr_side)


def test_the_registry_covers_the_config() -> None:
    assert set(BUILDERS) == set(get_args(RewardConfig.model_fields["type"].annotation))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"metric": "psnr", "has_hr": False}, "'r': 'psnr' compares with the HR image"),
        ({"metric": "ms_ssim", "sr_side": 128}, "at least 161 pixels .*got 128"),
        ({"metric": "niqe", "sr_side": 128}, "at least 192 pixels"),
        ({"metric": "afine_nr", "sr_side": 200}, "multiples of 32, got 200; use 192 or 224"),
        ({"metric": "musiqq"}, "no metric 'musiqq'; nearest: musiq"),
        ({"metric": "fid"}, "not a score per image: it compares two folders"),
        ({"metric": "psnr", "options": {"device": "cuda"}}, r"options \['device'\]"),
        ({"metric": None, "type": "lr_consistency", "options": {"cap": 3}}, r"unknown options \['cap'\]"),
        ({"metric": None, "type": "lr_consistency", "options": {"cap_db": -1}}, "positive number"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(**arguments)


def test_what_works_passes() -> None:
    for metric in ("psnr", "ms_ssim", "niqe", "musiq", "afine_all", "liqe"):
        check(metric)
    check("niqe", has_hr=False, sr_side=None)
    check(None, type="lr_consistency", has_hr=False, options={"cap_db": 50})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code, message",
    [
        (None, "does not exist"),
        ("def score(images, lr): pass", r"got `def score\(images, lr\)`"),
        ("def scores(): pass", "no top-level score"),
        ("def score(:", "line 1"),
        ("NEEDS_HR = True\ndef score(images, lr, hr, scale): pass", "NEEDS_HR = True"),
    ],
)
def test_user_files(tmp_path: Path, code: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ValueError, match=message):
        check(None, type="python", file=str(path), has_hr=False)  # type: ignore[arg-type]


def test_a_user_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("raise SystemExit\ndef score(images, lr, hr, scale): pass\n")
    check(None, type="python", file=str(path))  # type: ignore[arg-type]


def test_fast_and_without_torch() -> None:
    code = (
        "import sys; from rewards import check_reward; from rl.config.reward import RewardConfig\n"
        "check_reward(RewardConfig(name='psnr', type='pyiqa'), has_hr=True, sr_side=64)\n"
        "print([m for m in ('torch', 'pyiqa', 'ray', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    start = time.perf_counter()
    for _ in range(20):
        check("musiq")
    assert (time.perf_counter() - start) / 20 < 0.01


def test_the_catalog_agrees_with_pyiqa() -> None:
    import pyiqa

    listed = set(pyiqa.list_models())
    assert set(metric_names()) | set(NOT_PER_IMAGE) == listed
    assert set(MIN_SIDE) <= listed
    assert {n for n in metric_names() if metric_facts(n).full_reference} == (
        set(pyiqa.list_models("FR")) - set(NOT_PER_IMAGE)
    )
    assert metric_facts("dmm").lower_better and metric_facts("lpips").lower_better
    assert not metric_facts("musiq").lower_better

"""Refusals before a run: fast, torch-free, and in words that help."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rewards import check_reward
from rewards.iqa.catalog import MIN_SIDE, NOT_PER_IMAGE, metric_facts
from rewards.sections import LrConsistencySection, NoiseSection, PyiqaSection, PythonRewardSection, SharpnessSection
from rl.config.reward import RewardSection


def check(metric: str = "psnr", has_hr: bool = True, sr_side: int | None = 256, **fields: Any) -> None:
    check_reward(PyiqaSection(name="r", metric=metric, **fields), has_hr=has_hr, sr_side=sr_side)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"metric": "psnr", "has_hr": False}, r"reward 'r' \(metric 'psnr'\): 'psnr' compares with the HR image"),
        ({"metric": "psnr_y", "has_hr": False}, "'psnr_y' compares with the HR image"),
        ({"metric": "ms_ssim", "sr_side": 128}, "at least 161 pixels .*got 128"),
        ({"metric": "ssim_y", "sr_side": 10}, "'ssim_y' needs sides of at least 11 pixels"),
        ({"metric": "niqe", "sr_side": 128}, "at least 192 pixels"),
        ({"metric": "afine_nr", "sr_side": 200}, "multiples of 32, got 200; use 192 or 224"),
        ({"metric": "musiqq"}, "no metric 'musiqq'; nearest: musiq"),
        ({"metric": "psnr-y"}, "no metric 'psnr-y'; nearest: .*psnr_y.*; papers report psnr_y and ssim_y"),
        ({"metric": "fid"}, "not a score per image: it compares two folders"),
        ({"metric": "psnr", "options": {"device": "cuda"}}, r"options \['device'\] are set by the reward itself"),
        (
            {"metric": "psnr_y", "options": {"color_space": "yiq"}},
            r"\['color_space'\] are fixed by 'psnr_y'.*metric: psnr",
        ),
        (
            {"metric": "lpips", "options": {"nett": "vgg"}},
            r"options \['nett'\] are not read by 'lpips'; it reads .*net, ",
        ),
        ({"metric": "niqe", "options": {"data_range": 1}}, r"options \['data_range'\] are not read by 'niqe'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(**arguments)


@pytest.mark.parametrize("section", [SharpnessSection(name="r"), NoiseSection(name="r")])
def test_a_mask_needs_three_pixels(section: RewardSection) -> None:
    with pytest.raises(ValueError, match="reward 'r': its mask needs sides of at least 3 pixels, got 2"):
        check_reward(section, has_hr=False, sr_side=2)
    for side in (3, None):
        check_reward(section, has_hr=False, sr_side=side)


def test_what_works_passes() -> None:
    for metric in ("psnr", "psnr_y", "ssim_y", "ms_ssim", "niqe", "musiq", "afine_all", "liqe"):
        check(metric)
    check("niqe", has_hr=False, sr_side=None)
    check("lpips", options={"net": "squeeze", "pnet_rand": True})
    check("psnr", options={"data_range": 1.0, "crop_border": 4, "color_space": "ycbcr", "test_y_channel": True})
    check_reward(LrConsistencySection(name="r", cap_db=50), has_hr=False, sr_side=256)


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
    with pytest.raises(ValueError, match=f"reward 'r': .*{message}"):
        check_reward(PythonRewardSection(name="r", file=str(path)), has_hr=False, sr_side=256)


def test_a_user_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("raise SystemExit\ndef score(images, lr, hr, scale): pass\n")
    check_reward(PythonRewardSection(name="r", file=str(path)), has_hr=True, sr_side=256)


def test_fast_and_without_torch() -> None:
    code = (
        "import sys; from rewards import check_reward, check_tagger; from rewards.sections import PyiqaSection\n"
        "import rewards.taggers.sections\n"
        "section = PyiqaSection(name='musiq'); check_reward(section, has_hr=True, sr_side=64); section.weights()\n"
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
    assert set(NOT_PER_IMAGE) | set(MIN_SIDE) <= listed
    full_reference = {name for name in listed - set(NOT_PER_IMAGE) if metric_facts(name).full_reference}
    assert full_reference == set(pyiqa.list_models("FR")) - set(NOT_PER_IMAGE)
    assert metric_facts("dmm").lower_better and metric_facts("lpips").lower_better
    assert not metric_facts("musiq").lower_better and not metric_facts("psnr_y").lower_better

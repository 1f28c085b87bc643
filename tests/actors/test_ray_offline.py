"""The real command on pools: learner ranks alone on real Ray and DeepSpeed, tiny."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_run_on_pools_resumes_bit_for_bit(
    isrl_train: Callable[..., None], trained_steps: Callable[[Path], list[dict[str, float]]],
    adapter_facts: Callable[[Path], dict[str, Any]], write_pool: Callable[..., Path], tiny_sd21_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Three images, two a step: the third step begins a second epoch. A process that resumes after two of the three
    steps ends with the same adapter; GDPO's first loss is ln 2, where policy and reference are equal."""
    raw = {
        "kind": "offline", "run": {"dir": str(tmp_path / "whole")}, "train": {"steps": 3, "groups_per_step": 2},
        "policy": {"type": "naosd", "path": str(tiny_sd21_folder), "lora": {"rank": 2, "alpha": 4}},
        "objective": {"type": "gdpo"}, "learner": {"updates_per_batch": 1, "micro_batch": 2},
        "pools": {"path": str(write_pool(tmp_path / "pool", images=3)), "group_size": 3}, "scores": [{"name": "psnr"}],
        "checkpoint": {"every": 2},
    }  # fmt: skip
    recipe = tmp_path / "offline.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    isrl_train(str(recipe))
    run, resumed = tmp_path / "whole", tmp_path / "parts"
    trained = trained_steps(run)
    assert [step["policy/version"] for step in trained] == [1, 2, 3]
    assert trained[0]["loss/total"] == pytest.approx(0.6931, abs=1e-4)
    assert trained[2]["loss/drift"] > 0
    assert (run / "report.md").is_file()

    shutil.copytree(run / "checkpoints" / "step-000002", resumed / "checkpoints" / "step-000002")
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    (resumed / "metrics.jsonl").write_text("".join(kept))
    isrl_train(str(recipe), f"run.dir={resumed}", "--resume")
    assert adapter_facts(resumed)["digest"] == adapter_facts(run)["digest"]
    assert trained_steps(resumed)[-1]["loss/total"] == trained[2]["loss/total"]

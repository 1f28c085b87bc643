"""What a run leaves behind, whatever its evaluations say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.finish import draw_before_after, leave
from rl import jsonl
from rl.data.source import TaskSource
from rl.evaluation.records import EVAL_FILE, EvalRecord, append_eval
from rl.metrics import METRICS_FILE, Key, Metrics
from rl.types import LoraSnapshot, adapter_digest

NAME = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"


@pytest.fixture
def snapshot() -> LoraSnapshot:
    tensors = {NAME.format("A"): np.ones((4, 32), np.float32), NAME.format("B"): np.ones((32, 4), np.float32)}
    return LoraSnapshot(3, adapter_digest(tensors, "float32"), tensors, "float32")


@pytest.fixture
def config(run_config: Callable[..., Any]) -> Any:
    return run_config("eval.data={path: [skimage:coffee], crop: 128}", "eval.crops=2")


def record(phase: Any, crop: str, score: float, **scores: float) -> EvalRecord:
    return EvalRecord(phase, 0, "skimage:coffee", crop, 1, {"lr_consistency": score, **scores})


EVALUATIONS: dict[str, list[EvalRecord]] = {
    "none": [],
    "only the start": [record("start", "a", 1.0)],
    "other crops": [record("start", "a", 1.0), record("end", "b", 2.0)],
    "another reward": [record("start", "a", 1.0, gmsd=0.5), record("end", "a", 2.0)],
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_the_adapter_does_not_depend_on_the_evaluation(
    case: str, config: Any, snapshot: LoraSnapshot, adapter_facts: Callable[[Path], Any], tmp_path: Path
) -> None:
    """`eval.crops` or the rewards were changed when the run was resumed: adapter, card and report are there all the
    same, and the report says why it has no table."""
    append_eval(tmp_path / EVAL_FILE, EVALUATIONS[case])
    jsonl.append(tmp_path / METRICS_FILE, [Metrics(1, 2.0, {Key.LOSS_KL: 1.0}).to_json()])
    leave(config, tmp_path, snapshot, step=1)
    facts = adapter_facts(tmp_path)
    assert (facts["digest"], facts["rewards"]) == (snapshot.digest, {})
    assert (tmp_path / "lora" / "README.md").is_file()
    reasons = {"other crops": "expected the same (crop, seed) pairs", "another reward": "expected a score 'gmsd'"}
    assert (
        f"No table: {'evaluation: ' if case in reasons else ''}{reasons.get(case, EVAL_FILE)}"
        in (tmp_path / "report.md").read_text()
    )


def test_an_evaluation_stands_in_the_adapters_header(
    config: Any, snapshot: LoraSnapshot, adapter_facts: Callable[[Path], Any], tmp_path: Path
) -> None:
    append_eval(tmp_path / EVAL_FILE, [record("start", "a", 1.0), record("end", "a", 2.5)])
    leave(config, tmp_path, snapshot, step=7)
    facts = adapter_facts(tmp_path)
    assert facts["rewards"] == {"lr_consistency": [1.0, 2.5]}
    assert facts["step"] == 7 and not (tmp_path / "report.md").exists()


def test_the_sheet_shows_the_crops_that_both_evaluations_have(config: Any, tmp_path: Path) -> None:
    first, second = (task.lr_id for task in TaskSource(config.eval.data, 0).grid(2))
    image = np.zeros((3, 128, 128), np.uint8)
    (tmp_path / "eval").mkdir()

    def kept(phase: str, *crops: str) -> None:
        np.savez(tmp_path / "eval" / f"{phase}.npz", **dict.fromkeys(crops, image))  # type: ignore[arg-type]

    kept("start-000000", first, "of another grid")
    kept("end-000004", "of another grid", second)
    assert draw_before_after(config, tmp_path) is None
    kept("end-000005", first, second)
    sheet = draw_before_after(config, tmp_path)
    assert sheet is not None and sheet.is_file()

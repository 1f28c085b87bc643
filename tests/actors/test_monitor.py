"""The monitor: JSON lines over a resume, plain progress, and a real offline W&B run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import actors.monitor
from actors.monitor import WANDB_ID_FILE, Monitor
from rl.config.monitor import MonitorConfig
from rl.evaluation.sheets import SampleRow
from rl.metrics import Key, Metrics, read_metrics

HISTOGRAM = [float(count) for count in range(10)]


def metrics(step: int) -> Metrics:
    reward = {Key.REWARD_MEAN.of("musiq"): 0.6171, Key.EVAL_MEAN.of("musiq"): 0.5}
    return Metrics(step, 1.0 * step, {Key.PERF_IMAGES: 3.25, Key.ADVANTAGE_R_HISTOGRAM: HISTOGRAM, **reward})


def monitor(run_dir: Path, **config: object) -> Monitor:
    return Monitor(MonitorConfig.model_validate(config), run_dir, "demo", 4, {"seed": 1})


def test_lines_are_on_disk_at_once_and_resume_appends(tmp_path: Path) -> None:
    first = monitor(tmp_path / "run", progress=False)
    first.log(metrics(1))
    assert [record.step for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1]
    first.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"torn')
    second = monitor(tmp_path / "run", progress=False)
    second.log(metrics(2))
    second.close()
    assert [record.step for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = monitor(tmp_path)
    shown.log(metrics(1))
    shown.log(metrics(2))
    shown.log_samples(2, tmp_path / "none.png", ())
    shown.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/4  3.25 images/s  eta ?  musiq 0.6171  eval musiq 0.5"
    assert second.startswith("step 2/4  3.25 images/s  eta 0:00:0")


def test_progress_line_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, record=True, width=140, file=(tmp_path / "screen").open("w"))
    monkeypatch.setattr(actors.monitor, "Console", lambda: console)
    shown = monitor(tmp_path)
    shown.log(metrics(3))
    shown.close()
    text = console.export_text()
    assert "demo" in text and "3/4" in text and "musiq 0.6171" in text


def test_silent_where_progress_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = monitor(tmp_path, progress=False)
    quiet.log(metrics(1))
    quiet.close()
    assert capsys.readouterr().out == ""


def test_offline_wandb_writes_a_run_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    image = np.zeros((3, 8, 8), np.uint8)
    row = SampleRow(0, "cat", 2, 0, 2**63, {"musiq": 61.0}, 0.5, 0.55, image, image)
    sheet = tmp_path / "sheet.png"
    Image.new("RGB", (8, 8)).save(sheet)
    run = tmp_path / "run"
    online = monitor(run, progress=False, wandb="offline")
    online.log(metrics(1))
    online.log_samples(1, sheet, [row], sheet)
    online.close()
    (offline,) = (run / "wandb").glob("offline-run-*")
    stored = next(offline.glob("*.wandb")).read_bytes()
    for key in (b"reward/musiq/mean", b"advantage/r_histogram", b"samples/group", b"samples/maps"):
        assert key in stored
    assert (run / WANDB_ID_FILE).read_text() in offline.name
    (table,) = offline.glob("files/media/table/samples/*.json")
    assert "musiq" in json.loads(table.read_text())["columns"]


def test_neither_ray_nor_torch_nor_wandb_is_imported() -> None:
    code = (
        "import sys, actors.monitor, rl.evaluation.report;"
        "print([name for name in ('ray', 'torch', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

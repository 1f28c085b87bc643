"""The final outputs of a run: the exported adapter, the before/after sheet and the report."""

from pathlib import Path
from typing import Any

import numpy as np

from actors.deadline import get_within
from actors.roles import Published
from rl.config.online import RunConfig
from rl.config.training import TrainingSection
from rl.data.source import TaskSource
from rl.evaluation.records import EVAL_FILE, Change, NotComparable, changes, read_eval
from rl.evaluation.report import write_report
from rl.evaluation.sheets import BEFORE_AFTER_FILE, Cell, ContactRow, bicubic_upscale, write_contact_sheet
from rl.export import export_lora
from rl.metrics import METRICS_FILE
from rl.types import LoraSnapshot


def finish(config: TrainingSection, run_dir: Path, learner: Any, step: int) -> None:
    """Export the EMA of rank 0, draw before/after on held-out crops if there are any, write report.md."""
    deadline_s = config.learner.deadline_s
    call = learner.publish.remote(ema=True)
    published: Published = get_within(call, deadline_s, "export: learner.publish", "learner.deadline_s")
    snapshot: LoraSnapshot = get_within(published.ref, deadline_s, "export: the adapter", "learner.deadline_s")
    leave(config, run_dir, snapshot, step)


def leave(config: TrainingSection, run_dir: Path, snapshot: LoraSnapshot, step: int) -> None:
    """Write the adapter first, then again with the evaluation's results, which may be missing or not comparable."""
    export_lora(run_dir / "lora", snapshot, config, step=step, rewards=())
    rewards = _rewards(run_dir / EVAL_FILE)
    if rewards:
        export_lora(run_dir / "lora", snapshot, config, step=step, rewards=rewards)
    if isinstance(config, RunConfig):
        draw_before_after(config, run_dir)
    if (run_dir / METRICS_FILE).exists():
        print(f"report: {write_report(run_dir)}", flush=True)


def _rewards(evaluated: Path) -> tuple[Change, ...]:
    """Empty if there was no evaluation, or none that can be compared; the report says which."""
    try:
        return changes(read_eval(evaluated)) if evaluated.exists() else ()
    except NotComparable:
        return ()


def draw_before_after(config: RunConfig, run_dir: Path) -> Path | None:
    """LR, bicubic, before, after, HR of the crops that both evaluations kept as pixels; None if there are none."""
    start, ends = run_dir / "eval" / "start-000000.npz", sorted((run_dir / "eval").glob("end-*.npz"))
    if config.eval is None or not start.exists() or not ends:
        return None
    tasks = {task.lr_id: task for task in TaskSource(config.eval.data, 0).grid(config.eval.crops)}
    rows = []
    with np.load(start) as before, np.load(ends[-1]) as after:
        for lr_id in [name for name in before.files if name in after.files and name in tasks]:
            task = tasks[lr_id]
            images = (task.lr, bicubic_upscale(task.lr, task.scale), before[lr_id], after[lr_id], task.hr)
            rows.append(ContactRow(lr_id, tuple(Cell(image) for image in images)))
    if not rows:
        return None
    path = run_dir / BEFORE_AFTER_FILE
    write_contact_sheet(path, ("LR", "bicubic", "before", "after", "HR"), rows)
    return path

"""Where metrics go: `metrics.jsonl` always, W&B if enabled, one progress line on the console.

Imports neither torch nor ray: the driver owns one Monitor. Left out: reading metrics back (rl.metrics) and the report
(rl.evaluation.report).
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rl import jsonl
from rl.config.monitor import MonitorConfig
from rl.evaluation.sheets import SampleRow
from rl.metrics import HISTOGRAM_BINS, METRICS_FILE, Key, Metrics, Value, names_of
from rl.types import U8

if TYPE_CHECKING:
    from wandb import Run

WANDB_ID_FILE = "wandb_id.txt"
_SAMPLE_COLUMNS = ("ordinal", "lr_id", "policy_version", "member", "seed", "lr", "output", "advantage", "r")


class Monitor:
    """Takes typed metrics; call `close` at the end, even if the run fails."""

    def __init__(
        self,
        config: MonitorConfig,
        run_dir: Path,
        run_name: str,
        total_steps: int,
        resolved_config: Mapping[str, object],
    ) -> None:
        self._config = config
        self._file = run_dir / METRICS_FILE
        self._console = _Progress(run_name, total_steps) if config.progress else None
        run_dir.mkdir(parents=True, exist_ok=True)
        torn = jsonl.cut_torn_line(self._file)
        if torn:
            print(f"{self._file}: dropped {torn} bytes of an unfinished last line; an earlier process was killed")
        self._wandb = _start_wandb(config, run_dir, run_name, resolved_config) if config.wandb != "disabled" else None

    def log(self, metrics: Metrics) -> None:
        """Write one record everywhere; Metrics has already refused unknown keys."""
        jsonl.append(self._file, (metrics.to_json(),))
        if self._wandb is not None:
            self._wandb.log({"step": metrics.step, "wall_s": metrics.wall_s, **_for_wandb(metrics.values)})
        if self._console is not None:
            self._console.show(metrics)

    def log_samples(self, step: int, sheet: Path, rows: Sequence[SampleRow], maps: Path | None = None) -> None:
        """Send a written sheet, its maps and its group to W&B; without W&B only the files on disk remain."""
        if self._wandb is None:
            return
        import wandb

        names = tuple(rows[0].scores)
        table = wandb.Table(columns=[*_SAMPLE_COLUMNS, *names])
        lr = wandb.Image(_hwc(rows[0].lr))
        for row in rows:
            facts = (row.ordinal, row.lr_id, row.policy_version, row.member, str(row.seed))
            scores = (row.scores[name] for name in names)
            table.add_data(*facts, lr, wandb.Image(_hwc(row.image)), row.advantage, row.r, *scores)
        images = {"samples/sheet": wandb.Image(str(sheet))}
        if maps is not None:
            images["samples/maps"] = wandb.Image(str(maps))
        self._wandb.log({"step": step, "samples/group": table, **images})

    def close(self) -> None:
        if self._console is not None:
            self._console.stop()
        if self._wandb is not None:
            import wandb

            self._wandb.finish()
            wandb.teardown()  # finish() may return before W&B's own process has written the run's file
            self._wandb = None


class Stopwatch:
    """Wall-clock seconds since its creation."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._started


class _Progress:
    """One live line on a terminal; one plain line per record elsewhere."""

    def __init__(self, run_name: str, total_steps: int) -> None:
        self._total = total_steps
        self._first: tuple[int, float] | None = None
        self._live: Progress | None = None
        console = Console()
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
            )
            self._live = Progress(*columns, console=console)
            self._task = self._live.add_task(run_name, total=total_steps, line="")
            self._live.start()

    def show(self, metrics: Metrics) -> None:
        line = self._line(metrics)
        if self._live is None:
            print(f"step {metrics.step}/{self._total}  {line}", flush=True)
        else:
            self._live.update(self._task, completed=metrics.step, line=line)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self, metrics: Metrics) -> str:
        parts = []
        if Key.PERF_IMAGES in metrics.values:
            parts.append(f"{metrics.values[Key.PERF_IMAGES]:.3g} images/s")
        parts.append(f"eta {self._eta(metrics.step)}")
        for key, mark in ((Key.REWARD_MEAN, ""), (Key.EVAL_MEAN, "eval ")):
            for name in names_of(key, metrics.values):
                parts.append(f"{mark}{name} {metrics.values[key.of(name)]:.4g}")
        return "  ".join(parts)

    def _eta(self, step: int) -> str:
        """From the pace of this process, so that a resumed run does not count steps done before it."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done = step - self._first[0]
        if done <= 0:
            return "?"
        pace = (now - self._first[1]) / done
        return str(timedelta(seconds=round(pace * max(0, self._total - step))))


def _start_wandb(config: MonitorConfig, run_dir: Path, run_name: str, resolved_config: Mapping[str, object]) -> "Run":
    """A W&B run with its id stored in the run directory, so that a resumed run continues it."""
    import wandb

    id_file = run_dir / WANDB_ID_FILE
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4), encoding="utf-8")
    run = wandb.init(
        mode=config.wandb,
        project=config.project,
        entity=config.entity,
        name=run_name,
        dir=str(run_dir),
        id=id_file.read_text(encoding="utf-8").strip(),
        resume="allow" if config.wandb == "online" else None,
        # json round trip: W&B accepts plain values only and would store others as their repr
        config=json.loads(json.dumps(resolved_config)),
        # W&B would wrap stdout and break the live progress line; this also hides its banner, hence the print below
        settings=wandb.Settings(console="off", silent=True),
    )
    print(f"W&B {config.wandb}: {run.url if config.wandb == 'online' else Path(run.dir).parent}")
    # a resumed run goes back in steps, which W&B's own step counter rejects
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _for_wandb(values: Mapping[str, Value]) -> dict[str, object]:
    import wandb

    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    return {
        str(key): wandb.Histogram(np_histogram=(np.array(value), edges)) if isinstance(value, list) else value
        for key, value in values.items()
    }


def _hwc(image: U8) -> U8:
    return np.ascontiguousarray(image.transpose(1, 2, 0))

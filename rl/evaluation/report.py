"""`DIR/report.md` with its figures, written from a run's files on disk; works on a run in progress.

Reads metrics.jsonl (required), eval.jsonl, config.yaml, samples/*.png and before_after.png; the report says which are
missing. Left out: comparisons between runs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rl.errors import InputError, MissingInput
from rl.evaluation.figures import IDLE_KEYS, PUSH_KEYS, TIME_KEYS, plot_push, plot_rewards, plot_time, series
from rl.evaluation.heat import is_maps, maps_path
from rl.evaluation.records import EVAL_FILE, Ceiling, Change, NotComparable, ceiling, changes, read_eval
from rl.evaluation.sheets import BEFORE_AFTER_FILE, SAMPLES_DIR
from rl.metrics import METRICS_FILE, Key, Metrics, describe, read_metrics

REPORT_FILE = "report.md"
CONFIG_FILE = "config.yaml"
FIGURES_DIR = "report"
_SHEETS_SHOWN = 3
_FEW_PHOTOS = 10
_MAPS_NOTE = (
    "The newest sheet's group, cell by cell: blue is where a member beats the group's mean, orange where it falls "
    "behind; the last column is the advantage that it was trained with."
)

Plot = Callable[[Path, Sequence[Metrics]], bool]


def write_report(run_dir: Path) -> Path:
    """Write the report of one run directory and return its path."""
    source = run_dir / METRICS_FILE
    if not source.exists():
        raise MissingInput(f"{run_dir}: expected {METRICS_FILE} of a run, found none; is this a run directory?")
    metrics = read_metrics(source)
    if not metrics:
        raise InputError(f"{source}: expected at least one step, got an empty file; the run stopped before its first")
    (run_dir / FIGURES_DIR).mkdir(exist_ok=True)
    sections = (
        _summary(run_dir, metrics),
        _before_after(run_dir),
        _figure(run_dir, metrics, "Rewards", "rewards.png", plot_rewards, "no reward was logged"),
        _figure(run_dir, metrics, "Where the time went", "time.png", plot_time, "no times were logged"),
        _medians(metrics, TIME_KEYS + IDLE_KEYS),
        _figure(run_dir, metrics, "Weight pushes", "push.png", plot_push, "no push was logged"),
        _medians(metrics, (*PUSH_KEYS, Key.PUBLISH_BYTES)),
        _samples(run_dir),
        _configuration(run_dir),
    )
    report = run_dir / REPORT_FILE
    report.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return report


def _summary(run_dir: Path, metrics: Sequence[Metrics]) -> str:
    _, versions = series(metrics, Key.POLICY_VERSION)
    _, dropped = series(metrics, Key.GROUP_DROPPED)
    _, speed = series(metrics, Key.PERF_IMAGES)
    facts = [("last step", f"{metrics[-1].step}"), ("steps recorded", f"{len(metrics)}")]
    if versions.size:
        facts.append(("newest policy version", f"{versions[-1]:.0f}"))
    if speed.size:
        facts.append(("median speed", f"{np.median(speed):.3g} images/s"))
    facts.append(("groups dropped", f"{dropped.sum():.0f}" if dropped.size else "not logged"))
    facts.append(("wall time of the last process", f"{metrics[-1].wall_s / 60:.1f} min"))
    return f"# Run {run_dir.resolve().name}\n\n" + _table(("", ""), facts)


def _before_after(run_dir: Path) -> str:
    title = "## Held-out photographs, before and after"
    source = run_dir / EVAL_FILE
    records = read_eval(source) if source.exists() else ()
    try:
        rows = changes(records)
    except NotComparable as error:
        return f"{title}\n\nNo table: {error}."
    if not rows:
        return f"{title}\n\nNo table: {EVAL_FILE} lacks records of phase `start`, of phase `end`, or both."
    note = (
        f"{rows[0].pairs} pairs (crop, seed) of {rows[0].photos} photographs; raw scores, higher is better. The "
        "interval is the 95 % percentile bootstrap of the paired difference; whole photographs are drawn. **Bold**: it "
        "excludes 0."
    )
    if rows[0].photos < _FEW_PHOTOS:
        note += f" With fewer than {_FEW_PHOTOS} photographs it is narrower than it claims."
    best = ceiling(records)
    picked = () if best is None else (f"best of {best.samples} at the start",)
    if best is not None:
        note += (
            f" Best of {best.samples} at the start: each reward picks among {best.samples} samples of a crop by the "
            f"policy before training, as `isrl restore --best-of {best.samples}` with that reward does; it is what "
            "sampling more gives in place of training."
        )
    head = ("reward", "before", *picked, "after", "difference", "95 % interval", "pairs improved")
    return f"{title}\n\n{_table(head, [_change_cells(row, best) for row in rows])}\n\n{note}"


def _change_cells(row: Change, best: Ceiling | None) -> tuple[str, ...]:
    interval = row.difference
    difference = f"{interval.mean:+.4g}"
    return (
        row.name,
        f"{row.before:.5g}",
        *(() if best is None else (f"{best.best[row.name]:.5g}",)),
        f"{row.after:.5g}",
        f"**{difference}**" if interval.low > 0 or interval.high < 0 else difference,
        f"{interval.low:+.4g} to {interval.high:+.4g}",
        f"{row.improved_share:.0%}",
    )


def _figure(run_dir: Path, metrics: Sequence[Metrics], title: str, file: str, plot: Plot, missing: str) -> str:
    drawn = plot(run_dir / FIGURES_DIR / file, metrics)
    return f"## {title}\n\n" + (f"![{title}]({FIGURES_DIR}/{file})" if drawn else f"No figure: {missing}.")


def _medians(metrics: Sequence[Metrics], keys: Sequence[Key]) -> str:
    rows = []
    for key in keys:
        _, values = series(metrics, key)
        if values.size:
            entry = describe(key).key
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
            unit = "" if entry.unit == "0..1" else f" {entry.unit}"
            rows.append((f"`{key}`", f"{middle:.3g}{unit}", f"{low:.3g} to {high:.3g}", entry.meaning))
    return _table(("metric", "median", "10 % to 90 %", "meaning"), rows) if rows else ""


def _samples(run_dir: Path) -> str:
    lines = []
    if (run_dir / BEFORE_AFTER_FILE).exists():
        lines.append(f"Before and after on held-out crops:\n\n![before and after]({BEFORE_AFTER_FILE})\n")
    sheets = sorted(path for path in (run_dir / SAMPLES_DIR).glob("*.png") if not is_maps(path))[-_SHEETS_SHOWN:]
    lines += [f"- [{sheet.stem}]({SAMPLES_DIR}/{sheet.name})" for sheet in sheets]
    if sheets and maps_path(sheets[-1]).exists():
        lines.append(f"\n{_MAPS_NOTE}\n\n![maps of the newest sheet]({SAMPLES_DIR}/{maps_path(sheets[-1]).name})")
    return "## Samples\n\n" + ("\n".join(lines) if lines else "No sheets were drawn.")


def _configuration(run_dir: Path) -> str:
    source = run_dir / CONFIG_FILE
    if not source.exists():
        return f"## Configuration\n\nNo {CONFIG_FILE} in the run directory."
    text = source.read_text(encoding="utf-8").strip()
    return f"## Configuration\n\n<details><summary>{CONFIG_FILE}</summary>\n\n```yaml\n{text}\n```\n\n</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

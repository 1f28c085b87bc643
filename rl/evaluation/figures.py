"""The report's PNG figures, from metrics records alone. No pyplot, so no display and no global state is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rl.metrics import Key, Metrics, names_of
from rl.types import F64

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f6fb4", "#d9730d", "#2a8f4f", "#8a4fbf", "#b8336a", "#6b6b6b")
_RAW_ALPHA = 0.25
_DPI = 120
TIME_KEYS = (Key.TIME_STEP, Key.TIME_SAMPLE, Key.TIME_SCORE, Key.TIME_TRAIN, Key.TIME_TAG)
IDLE_KEYS = (Key.IDLE_ROLLOUT, Key.IDLE_REWARD, Key.IDLE_LEARNER)
PUSH_KEYS = (
    Key.PUBLISH_TOTAL,
    Key.PUBLISH_LAG,
    Key.PUBLISH_GATHER,
    Key.PUBLISH_PUT,
    Key.PUBLISH_LOAD,
    Key.PUBLISH_VERIFY,
)


def series(metrics: Sequence[Metrics], key: str) -> tuple[F64, F64]:
    """Steps and values of one scalar key, from the records that have it."""
    points = [(record.step, value) for record in metrics if isinstance(value := record.values.get(key), float)]
    pairs = np.array(points, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def moving_average(values: F64, width: int) -> F64:
    """Centred mean over `width` values, fewer at the ends."""
    kernel = np.ones(width)
    total = np.convolve(values, kernel, mode="full")
    count = np.convolve(np.ones_like(values), kernel, mode="full")
    start = (width - 1) // 2
    smooth: F64 = (total / count)[start : start + values.size]
    return smooth


def smoothing_width(points: int) -> int:
    """Odd, about a fifteenth of the curve; 1 leaves short curves as they are."""
    return max(1, points // 15) // 2 * 2 + 1


def plot_rewards(path: Path, metrics: Sequence[Metrics]) -> bool:
    """One panel per reward: batch mean raw and smoothed, held-out mean as points. False: no reward was logged."""
    from matplotlib.figure import Figure

    keys = [key for record in metrics for key in record.values]
    names = tuple(dict.fromkeys(names_of(Key.REWARD_MEAN, keys) + names_of(Key.EVAL_MEAN, keys)))
    if not names:
        return False
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        steps, values = series(metrics, Key.REWARD_MEAN.of(name))
        width = smoothing_width(values.size)
        panel.plot(
            steps, values, color=COLOURS[0], alpha=_RAW_ALPHA if width > 1 else 1.0, lw=1, label="training batch"
        )
        if width > 1:
            panel.plot(steps, moving_average(values, width), color=COLOURS[0], lw=2, label=f"mean over {width} steps")
        held_steps, held = series(metrics, Key.EVAL_MEAN.of(name))
        if held.size:
            panel.plot(held_steps, held, "o-", color=COLOURS[1], lw=1, ms=5, label="held-out crops")
        style(panel, name, "step", "score / scale")
        panel.legend(frameon=False, fontsize=8)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=_DPI)
    return True


def plot_time(path: Path, metrics: Sequence[Metrics]) -> bool:
    """Seconds per role and idle shares over the steps. False: neither was logged."""
    return _plot_groups(
        path,
        metrics,
        ((TIME_KEYS, "time of a step, by role (roles overlap)", "s"), (IDLE_KEYS, "idle share of a step", "share")),
    )


def plot_push(path: Path, metrics: Sequence[Metrics]) -> bool:
    """Seconds of each weight push, whole and by part. False: no push was logged."""
    return _plot_groups(path, metrics, ((PUSH_KEYS, "weight push", "s"),))


def style(panel: "Axes", title: str, x: str, y: str) -> None:
    """The style shared by all panels; x is always an integer."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_title(title, fontsize=11, loc="left")
    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, lw=0.6)


def _plot_groups(path: Path, metrics: Sequence[Metrics], groups: tuple[tuple[tuple[Key, ...], str, str], ...]) -> bool:
    from matplotlib.figure import Figure

    logged = {key for record in metrics for key in record.values}
    shown = [group for group in groups if logged.intersection(group[0])]
    if not shown:
        return False
    figure = Figure(figsize=(6.2 * len(shown), 3.4), layout="constrained")
    for panel, (keys, title, unit) in zip(figure.subplots(1, len(shown), squeeze=False).flat, shown, strict=True):
        for key, colour in zip(keys, COLOURS, strict=False):
            steps, values = series(metrics, key)
            if values.size:
                label = key.split("/")[1].removesuffix("_s").removesuffix("_share")
                marker = "o" if values.size < 3 else None
                panel.plot(steps, values, color=colour, lw=1.6, marker=marker, label=label)
        panel.set_ylim(0, 1 if unit == "share" else None)
        style(panel, title, "step", unit)
        panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=_DPI)
    return True

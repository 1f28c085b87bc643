"""Which rewards can be seen inside a group: cost, spread and agreement, per offline metric, as a markdown table.

    nice -n 15 .venv/bin/python tests/benchmarks/reward_candidates.py rollouts.npz --lpips ../shared/data/weights/lpips

Input: one npz, or a folder of them, with uint8 `images [K, G, 3, H, W]`, `hr [K, 3, H, W]`, `lr [K, 3, h, w]`. Columns:
ms per group; within-group std over between-group std of the group means; then the mean over groups of the Spearman
correlation with lr_consistency, psnr and -LPIPS. Groups without spread in either column have none and are left out.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.stats import spearmanr

from rewards import RewardError, RewardInput, build_reward
from rewards.sections import LrConsistencySection, PyiqaSection
from rl.types import F64, U8

OFFLINE = (
    "psnr",
    "psnry",
    "ssim",
    "ssimc",
    "ms_ssim",
    "fsim",
    "gmsd",
    "nlpd",
    "vif",
    "vsi",
    "cw_ssim",
    "piqe",
    "entropy",
)
SLOW = ("mad",)
Scorer = Callable[[RewardInput], F64]


@dataclass(frozen=True)
class Column:
    """One metric's scores `[K, G]` and its cost."""

    scores: F64
    ms: float


def main(argv: Sequence[str] | None = None) -> None:
    """Scores every group with every metric and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--lpips", type=Path, help="folder with squeezenet1_1_features.pth and lin_v0.1_squeeze.pth")
    parser.add_argument("--slow", action="store_true", help=f"also {', '.join(SLOW)} (seconds per image)")
    parser.add_argument("--limit", type=int, default=None, help="use the first groups only")
    parser.add_argument("--smoke", action="store_true", help="three groups of noise and three metrics, without a path")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.smoke:
        groups, offline = _noise(), ("psnr", "ssim")
    elif arguments.path is None:
        parser.error("path: expected an npz file or a folder with some")
    else:
        groups, offline = _load(arguments.path)[: arguments.limit], (*OFFLINE, *(SLOW if arguments.slow else ()))
    columns, refused = {}, []
    for name, build in _scorers(arguments.lpips, offline).items():
        try:
            columns[name] = _column(build(), groups)
        except RewardError as error:
            refused.append(f"- {name}: {error.reason}")
    print(f"{len(groups)} groups of {len(groups[0].images)}, {groups[0].images.shape[2:]} pixels, 1 thread\n")
    print(_table(columns))
    print("\n".join(["", "Not scored:", *refused]) if refused else "")


def _load(path: Path) -> list[RewardInput]:
    files = [path] if path.is_file() else sorted(path.glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"{path}: expected an npz file or a folder with some, found none")
    groups = []
    for file in files:
        with np.load(file) as stored:
            images, hr, lr = stored["images"], stored["hr"], stored["lr"]
        if images.ndim != 5 or images.dtype != np.uint8:
            raise ValueError(f"{file}: expected images uint8 [K, G, 3, H, W], got {images.dtype} {images.shape}")
        scale = images.shape[3] // lr.shape[2]
        groups += [RewardInput(images[k], lr[k], hr[k], scale) for k in range(len(images))]
    if len({group.images.shape for group in groups}) != 1:
        raise ValueError(f"{path}: groups differ in shape; put one shape in one call")
    return groups


def _noise() -> list[RewardInput]:
    """Three groups of four, as a file would hold them."""
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "noise.npz"
        hr = rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
        images = np.clip(hr[:, None] + rng.normal(0, 9, (3, 4, 3, 64, 64)), 0, 255).astype(np.uint8)
        np.savez(file, images=images, hr=hr, lr=hr[..., ::4, ::4])
        return _load(file)


def _scorers(lpips: Path | None, offline: Sequence[str]) -> dict[str, Callable[[], Scorer]]:
    def pyiqa_metric(name: str) -> Scorer:
        reward = build_reward(PyiqaSection(name=name))
        return lambda g: reward.score(g.images, g.lr, g.hr, g.scale)

    def lr_consistency() -> Scorer:
        reward = build_reward(LrConsistencySection(name="lr_consistency"))
        return lambda g: reward.score(g.images, g.lr, g.hr, g.scale)

    scorers: dict[str, Callable[[], Scorer]] = {"lr_consistency": lr_consistency}
    for name in offline:
        scorers[name] = lambda name=name: pyiqa_metric(name)  # type: ignore[misc]
    if lpips is not None:
        scorers["lpips-squeeze"] = lambda: _lpips(lpips)
    return scorers


def _lpips(folder: Path) -> Scorer:
    from rl.objectives.lpips import Lpips

    model = Lpips(folder / "squeezenet1_1_features.pth", folder / "lin_v0.1_squeeze.pth")

    def unit(array: U8) -> torch.Tensor:
        return torch.tensor(array).float() / 127.5 - 1

    def score(g: RewardInput) -> F64:
        if g.hr is None:
            raise ValueError("LPIPS needs hr, got None")
        x = unit(g.images)
        with torch.no_grad():
            return -np.asarray(model(x, unit(g.hr).expand_as(x)).numpy(), np.float64)

    return score


def _column(score: Scorer, groups: list[RewardInput]) -> Column:
    score(groups[0])  # warm-up: the adapter checks batch against single once
    seconds, rows = [], []
    for group in groups:
        start = time.perf_counter()
        rows.append(score(group))
        seconds.append(time.perf_counter() - start)
    return Column(np.stack(rows), 1000 * float(np.median(seconds)))


def _table(columns: dict[str, Column]) -> str:
    targets = [name for name in ("lr_consistency", "psnr", "lpips-squeeze") if name in columns]
    head = ["metric", "ms per group", "within std", "within / between", *(f"rho {name}" for name in targets)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, column in columns.items():
        within = float(column.scores.std(axis=1).mean())
        between = float(column.scores.mean(axis=1).std())
        ratio = f"{within / between:.3f}" if between > 0 else "-"
        rho = [_rho(column.scores, columns[target].scores) for target in targets]
        lines.append(f"| {' | '.join([name, f'{column.ms:.1f}', f'{within:.4g}', ratio, *rho])} |")
    return "\n".join(lines)


def _rho(a: F64, b: F64) -> str:
    """Mean within-group Spearman correlation; '-' where no group has spread in both."""
    values = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True) if np.ptp(x) > 0 and np.ptp(y) > 0]
    return f"{np.mean(values):+.2f}" if values else "-"


if __name__ == "__main__":
    main()

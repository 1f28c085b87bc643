"""What the degradation draws beside what the published code draws: equal quantiles, name by name.

`golden/degradation_draws.json` keeps the quantiles of 10 000 published draws; `test_degradation_reference.py` says how
the published code is run.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.config.degradation import DEGRADATIONS, Degradation
from rl.data.blur_kernels import KINDS, Bell, Sinc
from rl.data.degradation import Blur, GaussianNoise, Jpeg, PoissonNoise, Resize, Step, draw

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "degradation_draws.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text())
RECIPES = ("realesrgan", "gdpo")
GRID = np.linspace(0, 1, 21)
MODES = ("area", "bilinear", "bicubic")


def facts(steps: Sequence[Step]) -> dict[str, float]:
    """The draws by name: of the first pass `1.`, of the second `2.`, of what follows `last.`."""
    found = {"2.blurred": 0.0, "last.sinc": 0.0, "last.jpeg_last": float(isinstance(steps[-1], Jpeg))}
    part, qualities = "1", iter(["1.quality", "2.quality"])
    for step in steps:
        if isinstance(step, Blur):
            found |= of_kernel(part, step.kernel) | {f"{part}.{'sinc' if part == 'last' else 'blurred'}": 1.0}
        elif isinstance(step, Resize):
            found[f"{part}.mode"] = float(MODES.index(step.mode))
            if step.factor is not None:
                found[f"{part}.factor"] = step.factor
        elif isinstance(step, Jpeg):
            found[next(qualities)] = float(round(step.quality))
        elif isinstance(step, GaussianNoise | PoissonNoise):
            found[f"{part}.poisson"] = float(isinstance(step, PoissonNoise))
            if isinstance(step, PoissonNoise):
                found |= {f"{part}.gray": float(step.gray), f"{part}.strength": step.strength}
            else:
                found |= {f"{part}.gray": float(step.field.shape[2] == 1), f"{part}.sigma": step.sigma * 255}
            part = "2" if part == "1" else "last"
    del found["1.blurred"]
    return found


def published_facts(kernels: Sequence[Bell | Sinc], log: Sequence[tuple[str, Any]]) -> dict[str, float]:
    """The same names for what `Published.draws` gives."""
    found = {"2.blurred": 0.0, "last.sinc": float(len(kernels) == 3)}
    for part, kernel in zip(("1", "2", "last"), kernels, strict=False):
        found |= of_kernel(part, kernel)
    part, qualities = "1", iter(["1.quality", "2.quality"])
    for kind, value in log:
        if kind == "blur" and part == "2":
            found["2.blurred"] = 1.0
        elif kind == "mode":
            found[f"{part}.mode"] = float(MODES.index(value))
        elif kind == "factor":
            found[f"{part}.factor"] = value
        elif kind == "quality":
            found[next(qualities)] = float(np.round(value[0].item()))
        elif kind in ("gaussian", "poisson"):
            found[f"{part}.poisson"], found[f"{part}.gray"] = float(kind == "poisson"), value[1].item()
            found[f"{part}.sigma" if kind == "gaussian" else f"{part}.strength"] = value[0].item()
            found.setdefault(f"{part}.factor", 1.0)
            part = "2" if part == "1" else "last"
    return found | {"last.jpeg_last": float(log[-1][0] == "quality")}


def of_kernel(part: str, kernel: Bell | Sinc) -> dict[str, float]:
    """The draws of one kernel; what is drawn differently for different kinds has a name for each."""
    found: dict[str, float] = {"size": kernel.size}
    if isinstance(kernel, Sinc):
        by_size = "" if part == "last" else "_small" if kernel.size < 13 else "_large"
        found |= {"kind": len(KINDS), f"cutoff{by_size}": kernel.cutoff}
    else:
        isotropic = kernel.sigma[0] == kernel.sigma[1] and kernel.theta == 0
        found |= {"kind": KINDS.index((kernel.shape, isotropic)), "sigma_x": kernel.sigma[0]}
        found |= {} if isotropic else {"sigma_y": kernel.sigma[1], "theta": kernel.theta}
        found |= {} if kernel.shape == "gaussian" else {f"beta_{kernel.shape}": kernel.beta}
    return {f"{part}.{name}": float(value) for name, value in found.items()}


def gathered(draws: Callable[[int], dict[str, float]], count: int) -> dict[str, np.ndarray]:
    values: dict[str, list[float]] = defaultdict(list)
    for k in range(count):
        for name, value in draws(k).items():
            values[name].append(value)
    return {name: np.sort(found) for name, found in values.items()}


def quantiles(values: np.ndarray) -> list[float]:
    found = np.quantile(values, GRID, method="inverted_cdf")
    return [float(np.round(value, 4)) for value in found]


def distance(expected: Sequence[float], values: np.ndarray) -> float:
    """How far the sorted `values`' distribution function is from passing through the quantiles of `GRID`."""
    below = np.searchsorted(values, np.asarray(expected) - 1e-4, "left") / len(values)
    upto = np.searchsorted(values, np.asarray(expected) + 1e-4, "right") / len(values)
    return float(np.maximum(below - GRID, GRID - upto).max())


def distances(
    expected: dict[str, dict[str, Any]], found: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, float]]:
    """For each draw the distance of its quantiles, and what chance allows (one in 10^4 is above)."""
    assert set(found) == set(expected)
    limits = {name: 2.2 * (1 / len(found[name]) + 1 / expected[name]["count"]) ** 0.5 for name in found}
    return {name: distance(expected[name]["quantiles"], found[name]) for name in found}, limits


def ours(recipe: Degradation, count: int) -> dict[str, np.ndarray]:
    black = np.zeros((16, 16, 3), np.uint8)
    return gathered(lambda k: facts(draw(black, scale=4, recipe=recipe, seed=k)), count)


@pytest.mark.parametrize("name", RECIPES)
def test_draws_have_the_published_quantiles(name: str) -> None:
    found, limits = distances(GOLDEN["draws"][name], ours(DEGRADATIONS[name], 2000))
    assert {key: value for key, value in found.items() if value > limits[key]} == {}


@pytest.mark.parametrize(
    ("change", "key"),
    [({"final_sinc_cutoff": "by_size"}, "last.cutoff"), ({"beta_draw": "uniform"}, "1.beta_plateau")],
)
def test_other_draws_have_not(change: dict[str, str], key: str) -> None:
    """The test above can fail: what `light` draws differently is seen in its quantiles."""
    recipe = DEGRADATIONS["realesrgan"]
    if "beta_draw" in change:
        recipe = recipe.model_copy(update={"first": recipe.first.model_copy(update=change)})
    else:
        recipe = recipe.model_copy(update=change)
    found, limits = distances(GOLDEN["draws"]["realesrgan"], ours(recipe, 1000))
    assert found[key] > limits[key]


@pytest.mark.timeout(900)
def test_the_golden_draws_are_the_published_code_s(published: Any, tmp_path: Path) -> None:
    golden = {key: GOLDEN[key] for key in ("note", "how")} | {"draws": {}}
    for name in RECIPES:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        found = gathered(lambda _, name=name: published_facts(*published.draws(name)), 10_000)
        golden["draws"][name] = {
            key: {"count": len(values), "quantiles": quantiles(values)} for key, values in found.items()
        }
    written = tmp_path / GOLDEN_FILE.name
    written.write_text(re.sub(r",\n +(?=[-\d])", ", ", json.dumps(golden, indent=1)) + "\n")
    assert golden == GOLDEN, f"the published code gives {written}"

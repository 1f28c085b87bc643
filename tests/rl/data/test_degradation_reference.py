"""The degradation beside the published code: the same draws give the same images, and the draws the same quantiles.

The published code is no dependency. With it on disk,

    git clone https://github.com/XPixelGroup/BasicSR        # 8d56e3a
    git clone https://github.com/xinntao/Real-ESRGAN        # a4abfb2
    git clone https://github.com/Joyies/GDPO                # 48a9052
    ISRL_PUBLISHED=<the folder with the three> uv run pytest tests/rl/data/test_degradation_reference.py -s

its own functions run (`RealESRGANModel.feed_data`, `RealESRGANDataset.__getitem__`, `degrade_process`), on the CPU,
with the random numbers that `draw` drew. `golden/degradation.json` keeps what they gave, so that the suite checks
against them without a clone; its part `light` is of isrl before `rl.data.degradation` followed the published code.
"""

import base64
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import skimage.io
import torch

from rl.config.degradation import DEGRADATIONS, Degradation
from rl.data.blur_kernels import KINDS, Bell, Sinc
from rl.data.degradation import (
    Blur,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    Step,
    apply,
    degrade,
    draw,
    target,
)

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "degradation.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text())
RECIPES = ("realesrgan", "gdpo")
GRID = np.linspace(0, 1, 21)
MODES = ("area", "bilinear", "bicubic")
KERNELS: dict[str, Bell | Sinc] = {
    **{
        f"{shape} {'iso' if isotropic else 'aniso'}": Bell(
            shape, 9, (1.3, 1.3 if isotropic else 0.6), 0.0 if isotropic else 0.7, 1.0 if shape == "gaussian" else 1.6
        )
        for shape, isotropic in KINDS
    },
    "narrow sinc": Sinc(9, 2.9),
    "wide sinc": Sinc(15, 1.1),
}


def crops(side: int) -> Iterator[np.ndarray]:
    for photo in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()):
        yield np.ascontiguousarray(photo[100 : 100 + side, 150 : 150 + side])


def text(image: np.ndarray) -> str:
    return base64.b64encode(image.tobytes()).decode()


def image(stored: str, side: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(stored), np.uint8).reshape(side, side, 3).astype(int)


def drawn(name: str, k: int, hr: np.ndarray) -> list[Step]:
    """The steps of the golden images: JPEG is left out, because the published code imitates it."""
    steps = draw(hr, scale=4, recipe=DEGRADATIONS[name], seed=k)
    return [step for step in steps if not isinstance(step, Jpeg)]


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


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_basicsr_s(name: str) -> None:
    np.testing.assert_allclose(KERNELS[name].weights().ravel(), GOLDEN["kernels"][name], atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_small_images_are_the_published_pipeline_s(name: str) -> None:
    """Within one grey level, and three in a thousand samples not equal: eight images of each recipe."""
    for k, stored in enumerate(GOLDEN["images"][name]):
        hr = list(crops(64))[k % 4]
        difference = np.abs(apply(hr, drawn(name, k, hr)).astype(int) - image(stored, 16))
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.003, f"image {k}"


def test_the_sharpened_target_is_basicsr_s() -> None:
    """USMSharp of 48 pixels of a cat, where it changes a third of all samples; GDPO's target is the photograph."""
    hr = list(crops(48))[1]
    sharpened = target(hr, DEGRADATIONS["realesrgan"]).astype(int)
    assert np.abs(sharpened - image(GOLDEN["sharpened"], 48)).max() <= 1
    assert np.mean(sharpened != hr) > 0.3
    assert target(hr, DEGRADATIONS["gdpo"]) is hr


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
    found, limits = distances(GOLDEN["draws"]["realesrgan"], ours(recipe, 2000))
    assert found[key] > 1.5 * limits[key]


def test_light_is_what_it_was() -> None:
    """Equal for equal seeds, so the presets' benchmarks hold; another cv2 may round some samples otherwise."""
    for k, stored in enumerate(GOLDEN["light"]):
        hr = list(crops(64))[k % 4]
        lr = degrade(hr, scale=4, recipe=DEGRADATIONS["light"], seed=k)
        assert np.mean(lr != image(stored, 16)) < 0.01, f"image {k}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECIPES)
def test_every_image_is_the_published_one(name: str, published: Any, shared_data: Path) -> None:
    """Ten photographs, twenty draws each: all images of the way, and the LR image, within one grey level.

    `step`: the published code goes on with our image after each step, JPEG by cv2 in both. `chain`: it goes on with
    its own, without JPEG. There a value that lies within 1e-6 of half a grey level can round to the other side where
    Poisson noise rounds, and is then up to 3 levels off; `jpeg`: through cv2's JPEG it can move its whole block.
    """
    files = sorted((shared_data / "hr_photos" / "kodak").glob("*.png"))[:10]
    assert len(files) == 10
    step, chain, jpeg = [], [], []
    for k, file in enumerate(files):
        hr = np.ascontiguousarray(skimage.io.imread(file)[100:228, 200:328])
        for seed in range(20 * k, 20 * k + 20):
            steps = draw(hr, scale=4, recipe=DEGRADATIONS[name], seed=seed)
            x, images = hr.astype(np.float32) / np.float32(255), []
            for each in steps:
                x = each(x)
                images.append(x)
            theirs, forced = published.replay(name, hr, steps, images)
            step += [255 * float(np.abs(a - b).max()) for a, b in zip(images, theirs, strict=True)]
            lr, without = apply(hr, steps).astype(int), drawn(name, seed, hr)
            step.append(np.abs(lr - forced).max())
            jpeg.append(np.abs(lr - published.replay(name, hr, steps)[1]))
            chain.append(np.abs(apply(hr, without).astype(int) - published.replay(name, hr, without)[1]))
    for what, found in {"step": step, "chain": chain, "jpeg": jpeg}.items():
        print(
            f"\n{name} {what}: at most {np.max(found):.4f} levels, {np.mean(np.array(found) > 1):.1e} above 1", end=""
        )
    assert max(step) <= 1
    assert np.mean(np.array(chain) > 1) < 1e-5 and np.mean(np.array(jpeg) > 1) < 5e-3


@pytest.mark.timeout(900)
def test_the_golden_file_is_what_the_published_code_gives(published: Any, tmp_path: Path) -> None:
    golden = {key: GOLDEN[key] for key in ("note", "how", "light")}
    golden["kernels"] = {
        name: np.round(_cut(published.kernel(k), k.size).ravel(), 7).tolist() for name, k in KERNELS.items()
    }
    golden["images"] = {name: [text(_replay(published, name, k)) for k in range(8)] for name in RECIPES}
    sharpened = published.sharpened(list(crops(48))[1])
    golden["sharpened"] = text(sharpened)
    golden["draws"] = {}
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


def _cut(kernel: np.ndarray, size: int) -> np.ndarray:
    edge = (len(kernel) - size) // 2
    return kernel[edge : len(kernel) - edge, edge : len(kernel) - edge]


def _replay(published: Any, name: str, k: int) -> np.ndarray:
    hr = list(crops(64))[k % 4]
    return published.replay(name, hr, drawn(name, k, hr))[1]

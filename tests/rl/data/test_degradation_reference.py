"""The degradation beside the published code: the same draws give the same images.

The published code is no dependency. With it on disk,

    git clone https://github.com/XPixelGroup/BasicSR        # 8d56e3a
    git clone https://github.com/xinntao/Real-ESRGAN        # a4abfb2
    git clone https://github.com/Joyies/GDPO                # 48a9052
    ISRL_PUBLISHED=<the folder with the three> uv run pytest tests/rl/data/ -k published -s

its own functions run (`RealESRGANModel.feed_data`, `RealESRGANDataset.__getitem__`, `degrade_process`), on the CPU,
with the random numbers that `draw` drew. `golden/degradation.json` keeps what they gave, so that the suite checks
against them without a clone; its part `light` is of isrl before `rl.data.degradation` followed the published code.
Whether the draws themselves are the published ones is the matter of `test_degradation_draws.py`.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import skimage.io

from rl.config.degradation import DEGRADATIONS
from rl.data.blur_kernels import KINDS, Bell, Sinc
from rl.data.degradation import Jpeg, PoissonNoise, Step, apply, degrade, draw, target

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "degradation.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text())
RECIPES = ("realesrgan", "gdpo")
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


def without_jpeg(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if not isinstance(step, Jpeg)]


def drawn(name: str, k: int) -> list[Step]:
    """The steps of golden image `k`, without JPEG, which the published code imitates.

    They are drawn for a black image and get other Poisson counts, because counts drawn for a photograph, and all draws
    after them, hang on the last bits of its pixels.
    """
    rng = np.random.default_rng(k)
    steps = without_jpeg(draw(np.zeros((64, 64, 3), np.uint8), scale=4, recipe=DEGRADATIONS[name], seed=k))
    return [
        replace(step, counts=rng.poisson(60, step.counts.shape)) if isinstance(step, PoissonNoise) else step
        for step in steps
    ]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_basicsr_s(name: str) -> None:
    np.testing.assert_allclose(KERNELS[name].weights().ravel(), GOLDEN["kernels"][name], atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_small_images_are_the_published_pipeline_s(name: str) -> None:
    """Within one grey level, and three in a thousand samples not equal: eight images of each recipe."""
    for k, stored in enumerate(GOLDEN["images"][name]):
        hr = list(crops(64))[k % 4]
        difference = np.abs(apply(hr, drawn(name, k)).astype(int) - image(stored, 16))
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.003, f"image {k}"


def test_the_sharpened_target_is_basicsr_s() -> None:
    """USMSharp of 48 pixels of a cat, where it changes a third of all samples; GDPO's target is the photograph."""
    hr = list(crops(48))[1]
    sharpened = target(hr, DEGRADATIONS["realesrgan"]).astype(int)
    assert np.abs(sharpened - image(GOLDEN["sharpened"], 48)).max() <= 1
    assert np.mean(sharpened != hr) > 0.3
    assert target(hr, DEGRADATIONS["gdpo"]) is hr


def test_light_is_what_it_was() -> None:
    """Equal for equal seeds, so the presets' benchmarks hold.

    Another cv2 may round some samples otherwise, and where that changes a Poisson count one image of twelve.
    """
    apart = []
    for k, stored in enumerate(GOLDEN["light"]):
        lr = degrade(list(crops(64))[k % 4], scale=4, recipe=DEGRADATIONS["light"], seed=k)
        apart.append(np.mean(lr != image(stored, 16)))
    assert sorted(apart)[-2] < 0.01, apart


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
            lr, without = apply(hr, steps).astype(int), without_jpeg(steps)
            step.append(np.abs(lr - forced).max())
            jpeg.append(np.abs(lr - published.replay(name, hr, steps)[1]))
            chain.append(np.abs(apply(hr, without).astype(int) - published.replay(name, hr, without)[1]))
    for what, found in {"step": step, "chain": chain, "jpeg": jpeg}.items():
        print(
            f"\n{name} {what}: at most {np.max(found):.4f} levels, {np.mean(np.array(found) > 1):.1e} above 1", end=""
        )
    assert max(step) <= 1
    assert np.mean(np.array(chain) > 1) < 1e-5 and np.mean(np.array(jpeg) > 1) < 2.5e-2


@pytest.mark.timeout(900)
def test_the_golden_file_is_what_the_published_code_gives(published: Any, tmp_path: Path) -> None:
    golden = {key: GOLDEN[key] for key in ("note", "how", "light")}
    golden["kernels"] = {
        name: np.round(_cut(published.kernel(k), k.size).ravel(), 7).tolist() for name, k in KERNELS.items()
    }
    golden["images"] = {name: [text(_replay(published, name, k)) for k in range(8)] for name in RECIPES}
    sharpened = published.sharpened(list(crops(48))[1])
    golden["sharpened"] = text(sharpened)
    written = tmp_path / GOLDEN_FILE.name
    written.write_text(re.sub(r",\n +(?=[-\d])", ", ", json.dumps(golden, indent=1)) + "\n")
    assert golden == GOLDEN, f"the published code gives {written}"


def _cut(kernel: np.ndarray, size: int) -> np.ndarray:
    edge = (len(kernel) - size) // 2
    return kernel[edge : len(kernel) - edge, edge : len(kernel) - edge]


def _replay(published: Any, name: str, k: int) -> np.ndarray:
    hr = list(crops(64))[k % 4]
    return published.replay(name, hr, drawn(name, k))[1]

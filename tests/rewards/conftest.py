"""Small groups of real photographs, and local weights in the form that pyiqa reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.base import RewardInput
from rewards.sections import PyiqaSection
from rl.types import U8


@pytest.fixture(scope="session")
def photo() -> U8:
    """`[3, 512, 512]`, scikit-image's astronaut."""
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut().transpose(2, 0, 1))


@pytest.fixture(scope="session")
def crop(photo: U8) -> Callable[..., U8]:
    """A detailed square crop `[3, side, side]`; `at` shifts it."""

    def make(side: int, at: int = 64) -> U8:
        return np.ascontiguousarray(photo[:, at : at + side, at + 60 : at + 60 + side])

    return make


@pytest.fixture(scope="session")
def group(crop: Callable[..., U8]) -> Callable[..., RewardInput]:
    """A group: the HR crop with growing noise; every array read-only, as Ray hands them out."""

    def make(side: int, members: int = 3, at: int = 64) -> RewardInput:
        hr = crop(side, at)
        noise = np.random.default_rng(at).standard_normal((members, *hr.shape))
        sigma = np.linspace(4, 24, members).reshape(-1, 1, 1, 1)
        images = np.clip(np.rint(hr + sigma * noise), 0, 255).astype(np.uint8)
        lr = np.ascontiguousarray(hr[:, ::4, ::4])
        for array in (images, lr, hr):
            array.flags.writeable = False
        return RewardInput(images, lr, hr, 4)

    return make


@pytest.fixture(scope="session")
def pyiqa_config() -> Callable[..., PyiqaSection]:
    def make(metric: str, **options: Any) -> PyiqaSection:
        return PyiqaSection(name=metric, options=options)

    return make


@pytest.fixture(scope="session")
def lpips_squeeze_file(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and heads in one file: with `net: squeeze, pnet_rand: true` pyiqa then downloads nothing."""
    import torch

    folder = shared_data / "weights" / "lpips"
    state = torch.load(folder / "lin_v0.1_squeeze.pth", map_location="cpu", weights_only=True)
    backbone = torch.load(folder / "squeezenet1_1_features.pth", map_location="cpu", weights_only=True)
    for key, value in backbone.items():
        layer, rest = key.removeprefix("features.").split(".", 1)
        index = int(layer)
        stage = next(k for k, end in enumerate((2, 5, 8, 10, 11, 12, 13), start=1) if index < end)
        state[f"net.slice{stage}.{index}.{rest}"] = value
    path = tmp_path_factory.mktemp("lpips") / "squeeze.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def niqe_file(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scipy.io import savemat

    stored = np.load(shared_data / "weights" / "iqa" / "niqe_pris_params.npz")
    path = tmp_path_factory.mktemp("niqe") / "niqe.mat"
    savemat(path, {"mu_prisparam": stored["mu_pris_param"], "cov_prisparam": stored["cov_pris_param"]})
    return path

"""The published degradation code, run with chosen random numbers: what `test_degradation_reference.py` compares with.

Its files are executed as they are. Only the parts of basicsr that they import are loaded; the GAN that one of them
derives from is an empty class, and where the images are compared, `random`, `numpy.random`, `torch.rand`, `randn` and
`poisson` give the numbers of a `Script`, in the order in which the published code asks.
"""

import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from rl.data.blur_kernels import Bell, Sinc
from rl.data.degradation import Blur, GaussianNoise, Jpeg, PoissonNoise, Resize, Step

NO_KERNEL = np.full((21, 21), np.nan)
"""In place of the kernel of a blur that is left out; the published code has a pulse there, or does not come there."""


@pytest.fixture(scope="session")
def published() -> "Published":
    folder = os.environ.get("ISRL_PUBLISHED", "")
    if not folder:
        pytest.skip("needs the published code; ISRL_PUBLISHED must name the folder with BasicSR, Real-ESRGAN and GDPO")
    return Published(Path(folder))


def hwc(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy()


def chw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Published:
    """basicsr's functions and the two pipelines that are made of them, `realesrgan` and `gdpo`."""

    def __init__(self, folder: Path) -> None:
        for name in ("basicsr", "basicsr.utils", "basicsr.data", "basicsr.models"):
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [str(folder / "BasicSR" / name.replace(".", "/"))]
        self.sharpening = importlib.import_module("basicsr.utils.img_process_util")
        self.jpeg = importlib.import_module("basicsr.utils.diffjpeg")
        files = importlib.import_module("basicsr.utils.img_util")
        sys.modules["basicsr.utils"].__dict__.update(
            {"USMSharp": self.sharpening.USMSharp, "DiffJPEG": self.jpeg.DiffJPEG, "FileClient": None}
            | {name: getattr(files, name) for name in ("img2tensor", "tensor2img", "imfrombytes")}
            | {"get_root_logger": None}
        )
        sys.modules["basicsr.models.srgan_model"] = gan = ModuleType("basicsr.models.srgan_model")
        gan.__dict__["SRGANModel"] = type("SRGANModel", (), {})
        self.degradations = importlib.import_module("basicsr.data.degradations")
        esrgan, gdpo = folder / "Real-ESRGAN", folder / "GDPO" / "GDPOSR" / "datasets"
        self.modules = {
            "realesrgan": _load("published_model", esrgan / "realesrgan" / "models" / "realesrgan_model.py"),
            "gdpo": _load("published_gdpo", gdpo / "realesrgan.py"),
        }
        options = yaml.safe_load((esrgan / "options" / "train_realesrgan_x4plus.yml").read_text())
        self.options = {"realesrgan": options, "gdpo": yaml.safe_load((gdpo / "params_GDPO.yml").read_text())}
        self.loader = _load("published_dataset", esrgan / "realesrgan" / "data" / "realesrgan_dataset.py")
        dataset = options["datasets"]["train"] | {"meta_info": os.devnull}
        self.photos = self.loader.RealESRGANDataset(dataset)
        self.photos.paths = ["a black image"]
        black = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
        self.photos.file_client = SimpleNamespace(get=lambda *_: black)
        self.gdpo = self.modules["gdpo"].RealESRGAN_degradation("params_GDPO.yml")

    def pipeline(self, name: str, hr: np.ndarray, kernels: Sequence[np.ndarray], taps: dict[str, Any]) -> np.ndarray:
        """The LR image of `hr`, uint8, with operators and sources of random numbers replaced by `taps`."""
        x, module = chw(hr.astype(np.float32) / np.float32(255)), self.modules[name]
        first, second, sinc = (torch.FloatTensor(kernel)[None] for kernel in kernels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "random", taps["random"])
            patch.setattr(module, "np", SimpleNamespace(random=SimpleNamespace(uniform=taps["uniform"])))
            patch.setattr(module, "F", SimpleNamespace(interpolate=taps["interpolate"]))
            for function in ("filter2D", "random_add_gaussian_noise_pt", "random_add_poisson_noise_pt"):
                patch.setattr(module, function, taps[function])
            for function, value in taps["degradations"].items():
                patch.setattr(self.degradations, function, value)
            if name == "gdpo":
                self.gdpo.jpeger, self.gdpo.random_augment = taps["jpeger"], lambda _: x
                patch.setattr(self.gdpo, "random_kernels", lambda: (first, second, sinc))
                return np.rint(hwc(self.gdpo.degrade_process(None)[1]) * 255).astype(np.uint8)
            model = object.__new__(module.RealESRGANModel)
            model.opt, model.device, model.is_train = self.options[name] | {"gt_size": hr.shape[0]}, "cpu", True
            model.jpeger, model.usm_sharpener = taps["jpeger"], taps["usm_sharpener"]
            model._dequeue_and_enqueue = lambda: None
            model.feed_data({"gt": x, "kernel1": first, "kernel2": second, "sinc_kernel": sinc})
            return np.rint(hwc(model.lq) * 255).astype(np.uint8)

    def sharpened(self, hr: np.ndarray) -> np.ndarray:
        """USMSharp of uint8, rounded."""
        return np.rint(hwc(self.sharpening.USMSharp()(chw(hr.astype(np.float32) / np.float32(255)))) * 255).astype(
            np.uint8
        )

    def kernel(self, kernel: Bell | Sinc) -> np.ndarray:
        """The weights by basicsr, padded to 21."""
        if isinstance(kernel, Sinc):
            return self.degradations.circular_lowpass_kernel(kernel.cutoff, kernel.size, pad_to=21)
        shape = {"gaussian": "Gaussian", "generalized": "generalized_Gaussian", "plateau": "plateau"}[kernel.shape]
        arguments = [kernel.size, *kernel.sigma, kernel.theta] + [kernel.beta] * (kernel.shape != "gaussian")
        isotropic = kernel.sigma[0] == kernel.sigma[1] and kernel.theta == 0
        weights = getattr(self.degradations, f"bivariate_{shape}")(*arguments, isotropic=isotropic)
        return np.pad(weights, (21 - kernel.size) // 2)

    def replay(
        self, name: str, hr: np.ndarray, steps: Sequence[Step], forced: Sequence[np.ndarray] | None = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The published images after each of `steps`, and the LR image.

        JPEG is the steps' own; steps without `Jpeg` are run without. `forced`: after each step the published code
        goes on with this image instead of its own.
        """
        images: list[np.ndarray] = []
        jpegs = iter([step for step in steps if isinstance(step, Jpeg)])

        def keep(x: torch.Tensor) -> torch.Tensor:
            images.append(hwc(x).copy())
            return x if forced is None else chw(forced[len(images) - 1])

        def compress(x: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
            step = next(jpegs, None)
            return x if step is None else keep(chw(step(hwc(x))))

        def blur(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
            return x if kernel.isnan().all() else keep(self.sharpening.filter2D(x, kernel))

        taps = script(steps, self.options[name]) | {
            "filter2D": blur,
            "interpolate": lambda *a, **kw: keep(torch.nn.functional.interpolate(*a, **kw)),
            "jpeger": compress,
            "usm_sharpener": lambda x: x if images else keep(self.sharpening.USMSharp()(x)),
        }
        for function in ("random_add_gaussian_noise_pt", "random_add_poisson_noise_pt"):
            published = getattr(self.degradations, function)
            taps[function] = lambda *a, _published=published, **kw: keep(_published(*a, **kw))
        return images, self.pipeline(name, hr, self._kernels(steps), taps)

    def _kernels(self, steps: Sequence[Step]) -> list[np.ndarray]:
        noises = [i for i, step in enumerate(steps) if isinstance(step, GaussianNoise | PoissonNoise)]
        kernels = [NO_KERNEL] * 3
        for i, step in enumerate(steps):
            if isinstance(step, Blur):
                kernels[sum(i > noise for noise in noises)] = self.kernel(step.kernel)
        return kernels

    def draws(self, name: str) -> tuple[list[Bell | Sinc], list[tuple[str, Any]]]:
        """What the published code draws for one image: two or three kernels, and in its order the rest.

        The rest are factors and modes of resizes, arguments of noise and JPEG, and that there is a blur.
        """
        log: list[tuple[str, Any]] = []

        def uniform(*bounds: float) -> float:
            value = np.random.uniform(*bounds)
            if bounds:
                log.append(("factor", value))
            return value

        def noted(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*a: Any, **kw: Any) -> Any:
                log.append((kind, (*a[1:], *kw.values())))
                return function(*a, **kw)

            return call

        def interpolate(x: torch.Tensor, *, mode: str, **kw: Any) -> torch.Tensor:
            log.append(("mode", mode))
            return torch.nn.functional.interpolate(x, mode=mode, **kw)

        d = self.degradations
        taps = {
            "random": random,
            "uniform": uniform,
            "interpolate": interpolate,
            "filter2D": noted("blur", lambda x, k: x),
            "jpeger": noted("quality", lambda x, quality: x),
            "usm_sharpener": lambda x: x,
            "random_add_gaussian_noise_pt": d.random_add_gaussian_noise_pt,
            "random_add_poisson_noise_pt": d.random_add_poisson_noise_pt,
            "degradations": {
                f"generate_{kind}_noise_pt": noted(kind, getattr(d, f"generate_{kind}_noise_pt"))
                for kind in ("gaussian", "poisson")
            },
        }
        self.pipeline(name, np.zeros((16, 16, 3), np.uint8), [NO_KERNEL] * 3, taps)
        return self._draw_kernels(name), log

    def _draw_kernels(self, name: str) -> list[Bell | Sinc]:
        d, module = self.degradations, self.loader if name == "realesrgan" else self.modules["gdpo"]
        kernels: list[Bell | Sinc] = []

        def bell(shape: Any) -> Callable[..., np.ndarray]:
            def note(size: int, x: float, y: float, theta: float, beta: float = 1.0, *, isotropic: bool) -> np.ndarray:
                kernels.append(Bell(shape, size, (x, y), theta, beta))
                return np.ones((size, size))

            return note

        def sinc(cutoff: float, size: int, pad_to: int) -> np.ndarray:
            kernels.append(Sinc(size, cutoff))
            return np.ones((pad_to or size,) * 2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(d, "bivariate_Gaussian", bell("gaussian"))
            patch.setattr(d, "bivariate_generalized_Gaussian", bell("generalized"))
            patch.setattr(d, "bivariate_plateau", bell("plateau"))
            patch.setattr(module, "circular_lowpass_kernel", sinc)
            self.photos[0] if name == "realesrgan" else self.gdpo.random_kernels()
        return kernels


class Replaced:
    """`module`, with other functions under some of its names."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self.__dict__.update(functions)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def script(steps: Sequence[Step], options: dict[str, Any]) -> dict[str, Any]:
    """The sources of random numbers with which a published pipeline takes `steps`."""
    at = [i for i, step in enumerate(steps) if isinstance(step, GaussianNoise | PoissonNoise)]
    noises = [steps[i] for i in at]
    resizes = [step for step in steps if isinstance(step, Resize)]
    factors = [step.factor for step in resizes[:2] if step.factor is not None]
    names = iter(["up" if factor > 1 else "down" if factor < 1 else "keep" for factor in factors])
    modes = iter([step.mode for step in resizes])
    bounded = iter([factor for factor in factors if factor != 1])
    gaussian = [0.0 if isinstance(step, GaussianNoise) else 0.99 for step in noises]
    second_blur = 0.0 if any(isinstance(step, Blur) for step in steps[at[0] : at[1]]) else 0.99
    last = 0.0 if isinstance(steps[-1], Jpeg) else 0.99
    chances = iter([gaussian[0], second_blur, gaussian[1], last])
    rand, fields = [], []
    for step, suffix in zip(noises, ("", "2"), strict=True):
        poisson = isinstance(step, PoissonNoise)
        low, high = options[f"{'poisson_scale' if poisson else 'noise'}_range{suffix}"]
        strength = step.strength if isinstance(step, PoissonNoise) else step.sigma * 255
        field = step.counts if isinstance(step, PoissonNoise) else step.field
        gray = field.shape[2] == 1
        rand += [(strength - low) / (high - low), 0.0 if gray else 0.99]
        fields += [field[..., 0], np.zeros(())] if gray else [field.transpose(2, 0, 1)[None]]
    rands, arrays = iter(rand), iter(fields)

    def array(*size: Any, **kw: Any) -> torch.Tensor:
        return torch.from_numpy(next(arrays).astype(np.float32))

    source = Replaced(
        torch,
        rand=lambda *a, **kw: torch.tensor([next(rands)], dtype=torch.float32),
        randn=array,
        poisson=array,
    )
    return {
        "random": SimpleNamespace(
            choices=lambda *_: [next(names)], choice=lambda _: next(modes), random=lambda: 0.0, randint=random.randint
        ),
        "uniform": lambda *bounds: next(bounded) if bounds else next(chances, 1.0),
        "degradations": {"torch": source},
    }

"""LPIPS with SqueezeNet against published and stored numbers, with VGG-16 against pyiqa, and its laws."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rl.objectives.lpips import NETS, Lpips


@pytest.fixture(scope="module")
def lpips(shared_data: Path) -> Lpips:
    weights = shared_data / "weights" / "lpips"
    return Lpips(weights / "squeezenet1_1_features.pth", weights / "lin_v0.1_squeeze.pth")


def image(path: Path) -> Tensor:
    pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def test_published_value(lpips: Lpips) -> None:
    """torchmetrics documents 0.1008 for ten pairs of uniform noise drawn with seed 123."""
    generator = torch.Generator().manual_seed(123)
    first, second = (torch.rand(10, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    assert lpips(first, second).mean().item() == pytest.approx(0.1008, abs=5e-5)


def test_example_images(lpips: Lpips, shared_data: Path) -> None:
    """The three example images of the LPIPS repository, values stored when the weights were."""
    folder = shared_data / "calibration" / "lpips"
    reference = image(folder / "ex_ref.png")
    far, near = (lpips(image(folder / name), reference).item() for name in ("ex_p0.png", "ex_p1.png"))
    assert (far, near) == pytest.approx((0.711048, 0.147902), abs=2e-4)


def test_vgg_equals_pyiqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random VGG-16 and positive heads in both: equal to 1e-5 relative, pair by pair."""
    import pyiqa.archs.lpips_arch as reference
    from torchvision.models import vgg16

    # the classifier is not used, and to draw its 124 million numbers takes most of the time of a VGG-16
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda _: None)
    build = partial(vgg16, init_weights=False)
    monkeypatch.setitem(NETS, "vgg", (build, NETS["vgg"][1]))
    torch.manual_seed(0)
    network = build(weights=None)
    for layer in network.features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(network.features.state_dict(), tmp_path / "features.pth")
    torch.save(heads, tmp_path / "heads.pth")
    x, y = torch.rand(2, 3, 3, 64, 48)

    # pyiqa always asks torchvision for ImageNet's weights, which would be a download
    monkeypatch.setattr(reference.models, "vgg16", lambda **_: network)
    expected = reference.LPIPS(net="vgg", pretrained_model_path=str(tmp_path / "heads.pth"))(x, y).flatten()
    ours = Lpips(tmp_path / "features.pth", tmp_path / "heads.pth", net="vgg")
    torch.testing.assert_close(ours(2 * x - 1, 2 * y - 1), expected, rtol=1e-5, atol=0.0)
    assert expected.min() > 0.1


def test_laws(lpips: Lpips, shared_data: Path) -> None:
    """Zero for equal images, symmetric, larger with more noise, and a batch is its images one by one."""
    x = image(shared_data / "calibration" / "lpips" / "ex_ref.png")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.cat([x + sigma * noise for sigma in (0.0, 0.05, 0.1, 0.2, 0.4)])
    batch = x.expand_as(noisy)
    distances = lpips(noisy, batch)
    assert distances[0].item() == 0.0
    assert (distances.diff() > 0.01).all()
    torch.testing.assert_close(lpips(batch, noisy), distances, rtol=1e-5, atol=1e-7)
    alone = torch.cat([lpips(one[None], x) for one in noisy])
    torch.testing.assert_close(alone, distances, rtol=1e-4, atol=1e-6)


def test_it_is_a_loss(lpips: Lpips, shared_data: Path) -> None:
    """A step against the gradient lowers it; its own weights stay frozen."""
    x = image(shared_data / "calibration" / "lpips" / "ex_ref.png")
    y = (0.8 * x + 0.1).requires_grad_()
    before = lpips(y, x).sum()
    (gradient,) = torch.autograd.grad(before, y)
    after = lpips((y - 0.01 * gradient / gradient.abs().max()).detach(), x).sum()
    assert after.item() < before.item()
    assert not any(parameter.requires_grad for parameter in lpips.parameters())

"""The resizing of the degradation against PyTorch's own."""

import numpy as np
import pytest
import torch

from rl.data.resampling import Mode, interpolate


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_it_is_pytorch_s(mode: Mode) -> None:
    """To sizes and by factors, up, down and not at all; PyTorch cuts a size off. 1e-4 is 0.03 grey levels."""
    rng = np.random.default_rng(0)
    for factor in (*rng.uniform(0.15, 1.5, 40), 0.25, 0.5, 0.9992, 1.0, 1.0152):
        height, width = rng.integers(8, 100, 2)
        x = rng.random((height, width, 3), dtype=np.float32)
        chw = torch.from_numpy(x.transpose(2, 0, 1).copy())[None]
        by_factor = torch.nn.functional.interpolate(chw, scale_factor=factor, mode=mode)[0].permute(1, 2, 0).numpy()
        size = (int(height * factor), int(width * factor))
        np.testing.assert_allclose(interpolate(x, size, mode, factor), by_factor, atol=1e-4)
        size = (int(rng.integers(1, 120)), int(rng.integers(1, 120)))
        to_size = torch.nn.functional.interpolate(chw, size=size, mode=mode)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(interpolate(x, size, mode), to_size, atol=1e-4)

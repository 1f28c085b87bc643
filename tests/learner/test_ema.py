"""The average that evaluation and export use."""

import pytest
import torch

from learner.ema import Ema, ema_decay


def test_ema_decay_warms_up_and_saturates() -> None:
    """min((1 + s) / (10 + s), 0.9): 1/10, 2/11, 81/90, then 0.9 for good."""
    values = [ema_decay(0.9, s) for s in (0, 1, 80, 81, 10_000)]
    assert values == pytest.approx([0.1, 2 / 11, 0.9, 0.9, 0.9], abs=1e-15)
    assert ema_decay(0.0, 50) == 0.0


def test_updates_by_hand() -> None:
    """From 0 towards 1 with maximum 0.9: d is 2/11, then 3/12: 9/11, then 9/11 + (1 - 3/12) 2/11 = 21/22. The source is
    copied, not held."""
    theta = {"a": torch.zeros(2)}
    ema = Ema(theta, 0.9)
    theta["a"].fill_(1.0)
    assert ema.tensors["a"].tolist() == [0.0, 0.0]
    ema.update(theta, 1)
    assert ema.tensors["a"].tolist() == pytest.approx([9 / 11] * 2)
    ema.update(theta, 2)
    assert ema.tensors["a"].tolist() == pytest.approx([21 / 22] * 2)

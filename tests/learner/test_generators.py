"""The process-wide generators go on where they were."""

import random

import numpy as np
import torch

from learner.generators import generator_states, restore_generators


def test_every_generator_draws_the_same_again() -> None:
    def draws() -> list[float]:
        return [torch.rand(()).item(), torch.randn(()).item(), np.random.rand(), np.random.randn(), random.gauss(0, 1)]

    before = generator_states()
    try:
        torch.manual_seed(1)
        np.random.seed(2)
        random.seed(3)
        draws()  # an odd number of Gaussian draws: numpy and Python keep the second of a pair
        state = generator_states()
        first = draws()
        assert draws() != first
        restore_generators(state)
        assert draws() == first
    finally:
        restore_generators(before)
    assert generator_states() == before

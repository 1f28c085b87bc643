"""The process-wide random generators of a rank. isrl's own draws are functions of seeds and ordinals; a user's
objective or policy may still draw from these."""

import json
import random
from typing import Any

import numpy as np
import torch


def generator_states() -> bytes:
    """torch on the CPU and on this rank's GPU, numpy and Python, as JSON."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "torch": _hex(torch.get_rng_state()),
        "cuda": _hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }
    return json.dumps(states).encode()


def restore_generators(content: bytes) -> None:
    """What `generator_states` gave; a GPU's state is left out where there is no GPU."""
    states: dict[str, Any] = json.loads(content)
    torch.set_rng_state(_tensor(states["torch"]))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(states["cuda"]))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

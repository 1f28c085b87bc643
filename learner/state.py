"""A learner's state as the files of a checkpoint, safetensors and JSON. Torch-free: the driver carries them to where
the run lives. The frozen base is never in them, and nothing depends on the number of ranks or the ZeRO stage.

    learner.json              version, updates, digest of the reference, AdamW's steps
    adapter.safetensors       the trained adapter; float32, as everything here
    exp_avg.safetensors, exp_avg_sq.safetensors      AdamW's moments
    ema.safetensors
    published-<version>.safetensors                  published adapters still in use
    rng-<rank>.json           generators of one rank
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import xxhash
from safetensors.numpy import load, save

from rl.types import F32, U8

Arrays = Mapping[str, F32]
"""LoRA name -> values."""


def rng_file(rank: int) -> str:
    return f"rng-{rank}.json"


def file_digest(content: U8) -> str:
    """xxh3-128 of a file's bytes."""
    return xxhash.xxh3_128_hexdigest(content.data)


class Damaged(RuntimeError):
    """A file of a checkpoint changed on its way between driver and rank."""


@dataclass(frozen=True, eq=False)
class StateFiles:
    """Files by name, as bytes: one carrier for both ways between the ranks and the driver."""

    contents: Mapping[str, U8]
    digests: Mapping[str, str]

    @classmethod
    def of(cls, contents: Mapping[str, bytes | U8]) -> Self:
        arrays = {name: np.frombuffer(content, np.uint8) for name, content in contents.items()}
        return cls(arrays, {name: file_digest(array) for name, array in arrays.items()})

    def verified(self) -> Self:
        """Itself, if every file has its digest.

        Raises:
            Damaged: names the file.
        """
        if self.contents.keys() != self.digests.keys():
            raise Damaged(f"expected the files {sorted(self.digests)}, got {sorted(self.contents)}")
        for name, content in self.contents.items():
            if (got := file_digest(content)) != self.digests[name]:
                raise Damaged(f"{name}: expected {self.digests[name]}, got {got} of {len(content)} bytes")
        return self


@dataclass(frozen=True, eq=False)
class LearnerState:
    """What all ranks share."""

    version: int
    updates: int
    reference_digest: str | None
    """Digest of the reference adapter that losses compare against; None for the base."""
    adapter: Arrays
    exp_avg: Arrays
    exp_avg_sq: Arrays
    steps: Mapping[str, int]
    """AdamW's steps on each tensor; a tensor that never had a gradient is missing here and in the moments."""
    ema: Arrays
    published: Mapping[int, Arrays]
    """Published adapters by version."""

    def files(self) -> dict[str, bytes]:
        facts = {
            "version": self.version,
            "updates": self.updates,
            "reference_digest": self.reference_digest,
            "published": sorted(self.published),
            "steps": dict(self.steps),
        }
        tensors = {
            "adapter": self.adapter,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "ema": self.ema,
            **{_published(version): adapter for version, adapter in self.published.items()},
        }
        return {
            "learner.json": json.dumps(facts).encode(),
            **{f"{name}.safetensors": save(_contiguous(arrays)) for name, arrays in tensors.items()},
        }

    @classmethod
    def from_files(cls, files: StateFiles) -> Self:
        facts = json.loads(files.contents["learner.json"].tobytes())

        def arrays(name: str) -> Arrays:
            return load(files.contents[f"{name}.safetensors"].tobytes())

        return cls(
            version=facts["version"],
            updates=facts["updates"],
            reference_digest=facts["reference_digest"],
            adapter=arrays("adapter"),
            exp_avg=arrays("exp_avg"),
            exp_avg_sq=arrays("exp_avg_sq"),
            steps=facts["steps"],
            ema=arrays("ema"),
            published={version: arrays(_published(version)) for version in facts["published"]},
        )


def _published(version: int) -> str:
    return f"published-{version}"


def _contiguous(arrays: Arrays) -> dict[str, F32]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

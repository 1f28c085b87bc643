"""How local a model is: where pixels change when one latent position changes, and the other ways round.

    uv run python tests/benchmarks/bench_locality.py [--crops 6] [--smoke]

One position of the latent grid is disturbed by a small Gaussian (all channels), or one cell of pixels; the energy of
what changes is summed by the distance in cells (0: the same cell, 1: the eight around it, ...) and averaged over crops
of held-out photographs and positions at least two cells from the border.

decoder      latent -> pixels: which pixels a latent answers for, and so which errors its advantage should hear
encoder      pixels -> latent: how far the images that preference losses encode again spread an error
backbone     x_t -> prediction: how far an update at one position can reach, at the levels that are trained
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from harness import HELD_OUT, ROOT
from torch import Tensor

from rl.config.load import load_config
from rl.config.policy import policy_section
from rl.data.source import TaskSource
from rl.policies import load_policy
from rl.policies.base import Policy, from_uint8, to_uint8
from rl.types import F64

RINGS, SIZE = 4, 0.05
POLICIES = ("flux2sr", "naosd")


def by_ring(change: Tensor, at: tuple[int, int], cell: int) -> F64:
    """`[RINGS]` shares of the energy of `[C, H, W]` at 0, 1, 2, ... cells of `cell` from `at`; the last holds the
    rest."""
    energy = change.double().square().sum(dim=0)
    rows, columns = (torch.arange(side) // cell for side in energy.shape)
    ring = torch.maximum((rows[:, None] - at[0]).abs(), (columns - at[1]).abs()).clamp(max=RINGS - 1)
    sums = torch.stack([energy[ring == k].sum() for k in range(RINGS)])
    shares: F64 = (sums / sums.sum()).numpy()
    return shares


def response(f: Callable[[Tensor], Tensor], x: Tensor, cell_in: int, cell_out: int, generator: torch.Generator) -> F64:
    """Mean shares over four positions of `x` `[1, C, H, W]`, disturbed by SIZE of its standard deviation."""
    side, base, found = x.shape[-1] // cell_in, f(x), []
    for _ in range(4):
        i, j = (int(v) for v in torch.randint(2, side - 2, (2,), generator=generator))
        moved = x.clone()
        part = moved[..., i * cell_in : (i + 1) * cell_in, j * cell_in : (j + 1) * cell_in]
        part += SIZE * x.std() * torch.randn(part.shape, generator=generator)
        found.append(by_ring((f(moved) - base)[0], (i, j), cell_out))
    mean: F64 = np.mean(found, axis=0)
    return mean


@torch.no_grad()
def measure(policy: Policy, crops: int) -> dict[str, F64]:
    config = load_config(ROOT / "configs" / "quickstart.yaml", [f"eval.data.path={HELD_OUT}", f"eval.crops={crops}"])
    assert config.eval is not None
    generator, cell = torch.Generator().manual_seed(0), policy.section.cell_px
    found: dict[str, list[F64]] = {}
    for task in TaskSource(config.eval.data, 0).grid(crops):
        assert task.hr is not None
        hr = from_uint8(torch.tensor(task.hr))[None]
        x0 = policy.encode_hr(task.hr[None]).float()
        eps, condition = torch.randn(x0.shape, generator=generator), policy.condition_of(task)
        parts = {
            "decoder": response(policy.decode, x0, 1, cell, generator),
            "encoder": response(lambda x: policy.encode_hr(to_uint8(x).numpy()), hr, cell, 1, generator),
        }
        for level in policy.levels(3, condition)[:-1].tolist():
            t = torch.tensor([level])

            def predict(x: Tensor, t: Tensor = t, condition: object = condition) -> Tensor:
                return policy.prediction(x, t, [condition])

            parts[f"backbone, t = {level:g}"] = response(predict, policy.noised(x0, eps, t), 1, 1, generator)
        for name, shares in parts.items():
            found.setdefault(name, []).append(shares)
    return {name: np.mean(shares, axis=0) for name, shares in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--smoke", action="store_true", help="one crop")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| policy | part | same cell | 1 away | 2 away | farther |\n|---|---|---|---|---|---|")
    for kind in POLICIES:
        policy = load_policy(policy_section(type=kind))
        for name, shares in measure(policy, 1 if options.smoke else options.crops).items():
            print(f"| {kind} | {name} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()

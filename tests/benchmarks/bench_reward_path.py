"""What the reward path costs: RewardServer against pyiqa called directly on the same 48 images of 512x512.

    nice -n 15 .venv/bin/python tests/benchmarks/bench_reward_path.py --metrics psnr gmsd --rounds 5 [--smoke]

Direct is what a user would write: `from_numpy(x).float() / 255` of the whole batch, then the metric. Alone is the
metric on float tensors that are ready. The server switches off pyiqa's range check of its input, which the others pay.
Rounds rotate who goes first, so that a busy machine hurts all. Photographs: ../shared/data, else scikit-image.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import DATA

from rewards.sections import PyiqaSection
from rewards.server import RewardServer
from rl.data.photos import load_photos
from rl.types import U8, RolloutGroup, SRTask

TARGET = 1.05


@dataclass(frozen=True)
class Size:
    groups: int = 4
    members: int = 12
    side: int = 512


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one markdown row per metric and batching."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", nargs="+", default=["psnr", "gmsd"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="four images of 64x64")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    size = Size(2, 2, 64) if arguments.smoke else Size()
    pairs = _pairs(size)
    images = f"{size.groups * size.members} images {size.side}x{size.side}"
    print(f"{images}, {arguments.threads} thread(s), {arguments.rounds} rounds, CPU")
    print(f"seconds as median [min, max]; target: server / direct <= {TARGET}")
    print("| metric | groups per call | metric alone | direct | server | server / alone | server / direct |")
    print("|---|---|---|---|---|---|---|")
    for metric in arguments.metrics:
        for batch_groups in (1, size.groups):
            print(_row(metric, batch_groups, pairs, arguments.rounds), flush=True)


def _pairs(size: Size) -> list[tuple[SRTask, RolloutGroup]]:
    """Real photographs, each with twelve noisy candidates; read-only, as Ray hands them out."""
    folder = DATA / "realsr" / "hr"
    sources = [str(folder)] if folder.is_dir() else [f"skimage:{name}" for name in ("astronaut", "coffee", "chelsea")]
    side = size.side
    loaded = list(load_photos(sources).values())[: size.groups]
    photos = [np.resize(photo[:side, :side], (side, side, 3)) for photo in loaded]
    rng = np.random.default_rng(0)
    pairs = []
    for k in range(size.groups):
        hr = np.ascontiguousarray(photos[k % len(photos)].transpose(2, 0, 1))
        noise = rng.integers(-9, 10, (size.members, *hr.shape), dtype=np.int16)
        images = np.clip(hr + noise, 0, 255).astype(np.uint8)
        images.flags.writeable = False
        task = SRTask(k, f"p{k}", np.ascontiguousarray(hr[:, ::4, ::4]), hr, 4, 0)
        latents = np.zeros((size.members, 1, 1, 1), np.float32)
        pairs.append((task, RolloutGroup(k, task.lr_id, 0, "", tuple(range(size.members)), latents, images)))
    return pairs


def _row(metric: str, batch_groups: int, pairs: list[tuple[SRTask, RolloutGroup]], rounds: int) -> str:
    import pyiqa

    server = RewardServer(PyiqaSection(name=metric, batch_groups=batch_groups))
    model = pyiqa.create_metric(metric, device=torch.device("cpu"))
    images: U8 = np.concatenate([group.images for _, group in pairs])
    hrs: U8 = np.stack([task.hr for task, _ in pairs if task.hr is not None])
    tasks, groups = [task for task, _ in pairs], [group for _, group in pairs]

    def tensors() -> list[torch.Tensor]:
        x = torch.from_numpy(images).float() / 255
        if model.metric_mode == "NR":
            return [x]
        return [x, (torch.from_numpy(hrs).float() / 255).repeat_interleave(len(groups[0].images), dim=0)]

    ready = tensors()

    def alone() -> Any:
        return model(*ready)

    def direct() -> Any:
        return model(*tensors())

    def served() -> Any:
        return server.score(tasks, groups)

    expected = np.abs(alone().double().reshape(-1).numpy())
    np.testing.assert_allclose(np.abs(np.concatenate([c.scores for c in served()])), expected, rtol=1e-4)
    calls: tuple[Callable[[], Any], ...] = (alone, direct, served)
    times: dict[Callable[[], Any], list[float]] = {call: [] for call in calls}
    for round_ in range(rounds):
        for k in range(len(calls)):
            call = calls[(round_ + k) % len(calls)]
            start = time.perf_counter()
            call()
            times[call].append(time.perf_counter() - start)
    medians = {call: statistics.median(times[call]) for call in calls}
    ratios = [f"{medians[served] / medians[rival]:.3f}" for rival in (alone, direct)]
    cells = [metric, str(batch_groups), *(_spread(times[call]) for call in calls), *ratios]
    return f"| {' | '.join(cells)} |"


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"


if __name__ == "__main__":
    main()

"""`isrl restore`: super-resolves a user's images with a policy and, optionally, a trained adapter."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from PIL import Image

from actors.paths import refuse_unwritable
from rl.config.load import validate
from rl.config.policy import PolicySection
from rl.config.prompts import PromptSection
from rl.data.photos import IMAGE_SUFFIXES, Photos, list_images, load_rgb
from rl.data.prompts import load_prompts
from rl.errors import InputError
from rl.evaluation.sheets import bicubic_upscale
from rl.restoration.best_of import combined
from rl.restoration.settings import Options, Settings, settings
from rl.types import F64, U8

if TYPE_CHECKING:
    from actors.judge import Judge
    from rl.policies.base import Policy

Colour = Literal["wavelet", "adain", "none"]
Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys of the policy's section and, after `sampler.`, of its sampler: t_add=350 shift=1.5 sampler.steps=20",
    ),
]
Lora = Annotated[
    Path | None, typer.Option(help="A trained adapter; one that isrl exported says what it was trained on and how.")
]
Kind = Annotated[
    str | None, typer.Option("--type", help="Kind of policy: flux2sr (default), naosd, or package.module:Class.")
]
Base = Annotated[str | None, typer.Option(help="Embedded preset (default: mini) or a local diffusers folder.")]
Prompt = Annotated[str, typer.Option(help="One text for all images, for a policy with a text encoder.")]
PromptPath = Annotated[Path | None, typer.Option(help="A folder with NAME.txt for every image NAME.png.")]
Tile = Annotated[
    int | None, typer.Option(min=64, help="Tile side in output pixels; default: what the policy was trained at.")
]
BestOf = Annotated[
    int | None, typer.Option(min=2, help="Make this many candidates, seeds SEED to SEED+N-1, and keep the best.")
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="What picks the best: a pyiqa metric, lr_consistency, sharpness, noise, or a Python file; repeatable.",
    ),
]


def restore(  # noqa: PLR0913 - one parameter per option
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image or a folder of images.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="An image file, or a folder.")],
    keys: Keys = None,
    lora: Lora = None,
    kind: Kind = None,
    policy: Base = None,
    seed: Annotated[int, typer.Option(min=0, help="Noise seed; another seed is another candidate.")] = 0,
    scale: Annotated[int | None, typer.Option(min=1, max=8, help="Default: the adapter's, else 4.")] = None,
    prompt: Prompt = "",
    prompt_path: PromptPath = None,
    tile: Tile = None,
    colour: Annotated[Colour, typer.Option(help="Colour alignment.")] = "wavelet",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    compare: Annotated[bool, typer.Option(help="Also write bicubic beside the result.")] = False,
    best_of: BestOf = None,
    reward: Rewards = None,
) -> None:
    """Super-resolve an image or a folder, with or without a trained adapter.

    Sampler, noise schedule, dtype, scale and tile are the adapter's, else the policy's; KEY=VALUE changes them.
    """
    files = list_images(source)
    chosen = settings(Options(lora, kind, policy, device, scale, tile, keys or ()))
    prompts = _prompts(chosen.policy, files, prompt, prompt_path)
    judge = _judge(best_of, reward or [], files, chosen)
    outputs = _outputs(files, source, target)
    work = _Work(chosen, lora, range(seed, seed + (best_of or 1)), judge, colour, compare)
    for written in work.run(files, outputs, prompts):
        typer.echo(str(written))


@dataclass(frozen=True)
class _Work:
    """Everything shared by the images of one command."""

    settings: Settings
    lora: Path | None
    seeds: range
    judge: "Judge | None"
    colour: Colour
    compare: bool

    def run(self, files: list[Path], outputs: list[Path], prompts: Mapping[str, str]) -> Iterator[Path]:
        """Restore every image; yields the files written."""
        policy = self._policy()
        if self.judge is not None:
            self.judge.load()
        with _progress(len(files) * len(self.seeds)) as advance:
            for file, out in zip(files, outputs, strict=True):
                lr = np.ascontiguousarray(load_rgb(file).transpose(2, 0, 1))
                candidates = []
                for seed in self.seeds:
                    candidates.append(self._candidate(policy, lr, prompts[str(file)], seed))
                    advance()
                yield from self._write(lr, np.stack(candidates), out)

    def _policy(self) -> "Policy":
        import torch

        from rl.policies import load_policy
        from rl.restoration.adapter import attach_adapter

        if self.settings.policy.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no GPU here; write --device cpu")
        policy = load_policy(self.settings.policy)
        for module in policy.modules.values():
            module.eval()
        if self.lora is not None:
            attach_adapter(policy, self.lora)
        return policy

    def _candidate(self, policy: "Policy", lr: U8, prompt: str, seed: int) -> U8:
        from rl.restoration.tiles import restore_image

        chosen = self.settings
        return restore_image(
            policy, lr, scale=chosen.scale, seed=seed, sampler=chosen.sampler, prompt=prompt, tile_px=chosen.tile_px,
            overlap_px=chosen.tile_px * 3 // 8, colour=self.colour,
        )  # fmt: skip

    def _write(self, lr: U8, candidates: U8, out: Path) -> Iterator[Path]:
        best = 0
        if self.judge is not None:
            scores = self.judge.scores(candidates, lr, self.settings.scale)
            together = combined(scores)
            best = int(together.argmax())
            facts = self._facts(out, scores, together, best)
            out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        image = candidates[best]
        if self.compare:
            image = np.concatenate([bicubic_upscale(lr, self.settings.scale), image], axis=2)
        Image.fromarray(image.transpose(1, 2, 0)).save(out)
        yield out
        if self.judge is not None:
            yield out.with_suffix(".json")

    def _facts(self, out: Path, scores: F64, together: F64, best: int) -> dict[str, object]:
        assert self.judge is not None
        return {
            "image": out.name,
            "seed": self.seeds[best],
            "candidates": [
                {
                    "seed": seed,
                    "scores": dict(zip(self.judge.names, map(float, row), strict=True)),
                    "combined": float(z),
                }
                for seed, row, z in zip(self.seeds, scores, together, strict=True)
            ],
        }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; yields the function that counts one image."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("restoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich redirects the program's output to the bar's stream, above the bar: a piped list of files must not go there
    with Progress(
        *columns, console=console, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("restoring", total=total)
        yield lambda: bar.advance(task)


def _prompts(policy: PolicySection, files: list[Path], prompt: str, folder: Path | None) -> dict[str, str]:
    """Image -> prompt; a prompt that nothing reads is refused."""
    raw = {"prompt": prompt, "prompt_path": None if folder is None else str(folder)}
    section = validate(PromptSection, raw, "isrl restore")
    weights = policy.folder()
    if (prompt or folder is not None) and not policy.encodes_prompts(weights):
        raise InputError(
            f"--prompt{'' if prompt else '-path'}: policy '{policy.type}' has one cached embedding for all images, "
            f"{policy.prompt_file(weights)}, and reads no prompts; remove it"
        )
    return load_prompts(section, [str(file) for file in files])


def _judge(count: int | None, names: list[str], files: list[Path], chosen: Settings) -> "Judge | None":
    if (count is None) != (not names):
        given, other = ("--reward", "--best-of N") if names else (f"--best-of {count}", "--reward NAME")
        raise InputError(f"{given} needs {other}: candidates are picked by a reward; write both or neither")
    if not names:
        return None
    from actors.judge import Judge

    photos = Photos({str(file): file for file in files})
    sides = [chosen.scale * side for name in photos for side in photos.size(name)]
    return Judge(names, sides, chosen.policy.device)


def _outputs(files: list[Path], source: Path, target: Path) -> list[Path]:
    """Where each result goes; refused before the model is loaded if it cannot be written."""
    to_folder = source.is_dir() or target.is_dir() or target.suffix == ""
    if not to_folder and target.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"OUT {target}: expected a folder or a file ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    folder = target if to_folder else target.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUT {folder}: expected a folder, found a file")
    outputs = [folder / f"{file.stem}.png" for file in files] if to_folder else [target]
    if len(set(outputs)) < len(files):
        raise InputError(f"{source}: two images differ only in their ending, and both would be written to one .png")
    refuse_unwritable("OUT", folder)
    folder.mkdir(parents=True, exist_ok=True)
    return outputs

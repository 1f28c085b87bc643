"""`isrl pretrain`: trains an embedded preset on photographs, scores it on held-out ones, writes a card."""

import json
import time
from pathlib import Path

import torch

from learner.pretraining.report import card, held_out_crops, score
from rl.config.open_union import load
from rl.config.policy import policy_section
from rl.config.pretrain import PretrainSection
from rl.errors import MissingInput
from rl.objectives.lpips import Lpips
from rl.policies import load_policy


def pretrain(config: PretrainSection, source: str) -> Path:
    """Write the preset's folder with scores and card, and return it.

    `source` is the recipe as called (file and overrides); the card repeats it.
    """
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    # subnormal moments of layers that have not moved yet make AdamW on a CPU several times slower
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    lpips = Lpips(_weights(config.lpips.backbone), _weights(config.lpips.heads), net=config.lpips.net).to(config.device)
    held_out = held_out_crops(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    stages: str = load(config.maker)(config, lpips, _log)
    minutes = (time.monotonic() - started) / 60
    written = load_policy(policy_section(type=config.type, path=str(out.absolute()), device=config.device))
    scores = score(written, held_out, lpips, config, out / "contact_sheet.png")
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    (out / "README.md").write_text(card(config, source, scores, minutes, written, stages), encoding="utf-8")
    _log(json.dumps(scores))
    return out


def _weights(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingInput(f"lpips: no such weights file {path}")
    return path


def _log(line: str) -> None:
    print(line, flush=True)

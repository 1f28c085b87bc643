"""Everything that can be refused before a process starts: data, weights, rewards, prompts, the run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from actors.checkpoint_files import CHECKPOINTS_DIR, newest_checkpoint
from actors.checkpoints import ControllerState, open_checkpoint
from actors.paths import inputs, is_missing, refuse_unwritable
from actors.same_run import RunIdentity
from rewards import check_reward, check_tagger, check_weights
from rl.config.data import DataSection
from rl.config.load import ConfigError
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig
from rl.config.policy import PolicySection, reference_file
from rl.config.training import TrainingSection
from rl.data.photos import check_sources
from rl.data.pools import PoolSource
from rl.data.source import TaskSource
from rl.export import LORA_FILE
from rl.metrics import METRICS_FILE
from rl.policies.stored import check_adapter

_P = ParamSpec("_P")


def preflight(config: TrainingSection, *, resume: bool) -> None:
    """Raise `ConfigError` with every problem found, one line each."""
    problems = _online(config) if isinstance(config, RunConfig) else []
    problems += _try(PoolSource, config) if isinstance(config, OfflineConfig) else []
    problems += _try(_check_run_dir, Path(config.run.dir), resume=resume)
    problems += _try(_check_policy, config.policy)
    problems += _missing(config, problems)
    if resume and not problems:
        problems += _try(_check_checkpoint, config)
    if problems:
        raise ConfigError("\n".join(["this run cannot start:", *dict.fromkeys(problems)]))


def _online(config: RunConfig) -> list[str]:
    problems = _try(_check_data, "data", config.data)
    if config.eval is not None:
        problems += _try(_check_data, "eval.data", config.eval.data, config.eval.crops)
    for where, data in (("data", config.data), *([("eval.data", config.eval.data)] if config.eval else [])):
        problems += _try(config.policy.check_prompts, where, data)
        if data.tagger is not None:
            problems += _try(check_tagger, where, data.tagger)
        for reward in config.rewards:
            problems += _try(check_reward, reward, has_hr=data.has_hr, sr_side=data.crop)
    if config.ray.address is None and not problems:
        # on a cluster this machine's disk says nothing about the machine that scores
        problems += _try(check_weights, config.rewards)
    return problems


def _try(check: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> list[str]:
    try:
        check(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        return [f"  {error}"]
    return []


def _check_data(where: str, data: DataSection, crops: int = 0) -> None:
    """Check sources, image sizes (from their headers), pairs, prompt files, and the `crops` of an evaluation."""
    try:
        check_sources(data.path)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{where}.path: {error}") from error
    try:
        source = TaskSource(data, 0)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{where}.{str(error).removeprefix('data.')}") from error
    source.cells(crops)


def _check_run_dir(folder: Path, *, resume: bool) -> None:
    checkpoint, metrics = newest_checkpoint(folder / CHECKPOINTS_DIR), folder / METRICS_FILE
    if resume and checkpoint is None and metrics.exists():
        raise ValueError(
            f"--resume: {metrics} holds steps, but {folder}/{CHECKPOINTS_DIR} no checkpoint to go on from; write "
            "run.dir=OTHER for a new run"
        )
    if not resume and (checkpoint is not None or metrics.exists()):
        or_resume = "resume it with --resume, or " if checkpoint else ""
        raise ValueError(f"run.dir {folder} already holds a run; {or_resume}write run.dir=OTHER for a new one")
    refuse_unwritable("run.dir", folder)


def _check_checkpoint(config: TrainingSection) -> None:
    """The newest checkpoint is whole and one of this run."""
    checkpoint = newest_checkpoint(Path(config.run.dir) / CHECKPOINTS_DIR)
    if checkpoint is None:
        return
    state, _ = open_checkpoint(checkpoint)
    _refuse_fewer_steps(config, state)
    refused = [change for change in RunIdentity.of(config).changes(state.identity) if not change.allowed]
    if refused:
        raise ValueError(
            "\n    ".join(
                [
                    f"{checkpoint} is of another run:",
                    *map(str, refused),
                    "set these as they were; or write run.dir=OTHER for a new run, which may begin with this one's "
                    f"adapter: policy.lora.init_from={config.run.dir}/lora/{LORA_FILE}",
                ]
            )
        )


def _refuse_fewer_steps(config: TrainingSection, state: ControllerState) -> None:
    if config.train.steps < state.step:
        raise ValueError(f"train.steps: expected at least the {state.step} steps trained, got {config.train.steps}")


def _check_policy(policy: PolicySection) -> None:
    policy.check()
    # one file may be both; the message then names the key under which it was given
    for file, key in {reference_file(policy): "reference", policy.lora.init_from: "lora.init_from"}.items():
        if file is None:
            continue
        if is_missing(file):
            raise ValueError(f"policy.{key}: no such file or folder {file}")
        try:
            check_adapter(Path(file).expanduser(), policy)
        except ValueError as error:
            raise ValueError(f"policy.{key}: {error}") from error


def _missing(config: TrainingSection, problems: list[str]) -> list[str]:
    """Missing inputs of any section, including user-defined ones, that no other problem names yet."""
    return [
        f"  {key}: no such file or folder {path}"
        for key, path in inputs(config)
        if is_missing(path) and not any(path in problem for problem in problems)
    ]

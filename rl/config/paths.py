"""Input paths as every process of a run can read them: Ray starts its workers in another directory."""

from pathlib import Path

from rl.config.data import SKIMAGE, DataConfig
from rl.config.policy import PolicyConfig
from rl.config.run import RunConfig
from rl.policies.folders import preset_folder


def absolute(config: RunConfig, root: Path) -> RunConfig:
    """`config` with every relative input path joined to `root`; bundled photographs, presets and URLs stay."""
    evaluated = config.eval.data
    held_out = None if evaluated is None else _data(evaluated, root)
    return config.model_copy(
        update={
            "data": _data(config.data, root),
            "policy": _policy(config.policy, root),
            "rewards": [reward.absolute(root) for reward in config.rewards],
            "eval": config.eval.model_copy(update={"data": held_out}),
        }
    )


def _join(path: str, root: Path) -> str:
    return str(root / Path(path).expanduser())


def _if_there(path: str, root: Path) -> str:
    """For values that may also be a name or a URL."""
    joined = _join(path, root)
    return joined if Path(joined).exists() else path


def _optional(path: str | None, root: Path) -> str | None:
    return None if path is None else _join(path, root)


def _data(data: DataConfig, root: Path) -> DataConfig:
    paths = [path if path.startswith(SKIMAGE) else _join(path, root) for path in data.path]
    update = {
        "path": paths,
        "hr_path": _optional(data.hr_path, root),
        "prompt_path": _optional(data.prompt_path, root),
        "tagger": None if data.tagger is None else data.tagger.absolute(root),
    }
    return data.model_copy(update=update)


def _policy(policy: PolicyConfig, root: Path) -> PolicyConfig:
    lora = policy.lora.model_copy(update={"init_from": _optional(policy.lora.init_from, root)})
    path = policy.path if preset_folder(policy) else _if_there(policy.path, root)
    return policy.model_copy(
        update={
            "path": path,
            "prompt_embeds": _optional(policy.prompt_embeds, root),
            "merge": [_join(file, root) for file in policy.merge],
            "lora": lora,
        }
    )

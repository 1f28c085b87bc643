"""Where a policy's weights are; torch-free, so that a missing folder is refused before any process starts."""

from pathlib import Path

from rl.config.policy import PolicyConfig

EMBEDDED = Path(__file__).parent


def policy_folder(config: PolicyConfig) -> Path:
    """The folder with the weights: an embedded preset by name, else a local diffusers folder."""
    presets = EMBEDDED / config.type / "weights"
    embedded = presets / config.path
    folder = embedded if embedded.is_dir() else Path(config.path).expanduser()
    if not (folder / "transformer" / "config.json").is_file():
        names = sorted(p.name for p in presets.glob("*/"))
        raise FileNotFoundError(
            f"policy.path '{config.path}': expected an embedded preset {names} or a local diffusers folder with "
            f"transformer/config.json, found neither (looked in {folder.absolute()})"
        )
    prompt = prompt_file(folder, config)
    if not prompt.is_file():
        raise FileNotFoundError(
            f"policy.prompt_embeds: expected a safetensors file with `prompt_embeds [L, D]`, {prompt} does not exist; "
            "encode one prompt with the model's text encoder and write policy.prompt_embeds=FILE"
        )
    return folder


def prompt_file(folder: Path, config: PolicyConfig) -> Path:
    """The cached prompt embedding: the configured file, else the one in the policy's folder."""
    return Path(config.prompt_embeds).expanduser() if config.prompt_embeds else folder / "prompt_embeds.safetensors"

"""The generator, its adapter, and how a group is sampled from it."""

import contextlib
import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rl.config.base import Section

FLUX2_ATTN_ADD = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
FLUX2_SINGLE = ("attn.to_qkv_mlp_proj", "attn.to_out")
FLUX2_FFN = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "attn_add": FLUX2_ATTN_ADD,
    "attn_add_single": FLUX2_ATTN_ADD + FLUX2_SINGLE,
    "attn_add_ffn": FLUX2_ATTN_ADD + FLUX2_FFN,
}
"""FoA-SR's default (`attn_add`) and its ablation (`attn_add_ffn`); `attn_add_single` adds the fused projections of
FLUX.2's single blocks, which the paper neither includes nor excludes."""


class LoraConfig(Section):
    """The trained adapter. LucidNFT: rank 32; alpha 64 is DiffusionNFT's value (LucidNFT's is unpublished)."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    targets: Literal["attn_add", "attn_add_single", "attn_add_ffn"] = "attn_add"
    init_from: str | None = None
    """A diffusers LoRA file to start from; it is loaded into the policy and into the behaviour adapter."""


class PolicyConfig(Section):
    """Which generator, and where its weights are."""

    type: Literal["flux2sr"] = "flux2sr"
    path: str = "mini"
    """`mini` for the embedded weights, or a local diffusers folder (transformer/, vae/, scheduler/)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    gradient_checkpointing: bool = False
    prompt_embeds: str | None = None
    """A safetensors file with `prompt_embeds [L, D]`; the default is the file in the policy's folder."""
    guidance: float = 1.0
    """Read only where the transformer has a guidance embedding (FLUX.2-dev); FoA-SR samples at 1.0."""
    lora: LoraConfig = LoraConfig()


def _shift(value: object) -> object:
    """A number may come as text from the command line; one rule, so that a mistake is one line."""
    number = math.nan
    if isinstance(value, int | float | str):
        with contextlib.suppress(ValueError):
            number = float(value)
    if value != "flux2" and not number > 0:
        raise ValueError(f"expected a number above 0 or 'flux2', got {value!r}")
    return value if value == "flux2" else number


Shift = Annotated[float | Literal["flux2"], BeforeValidator(_shift)]


class SamplerConfig(Section):
    """The denoising loop over the shifted flow schedule."""

    solver: Literal["euler", "heun", "dpm2"] = "dpm2"
    """`dpm2`: second-order multistep, one model call a step (first and last step first order). `heun`: two calls."""
    steps: int = Field(10, ge=1)
    shift: Shift = "flux2"
    """exp(mu) of the resolution shift, or FLUX.2's empirical mu from token count and steps."""


class RolloutConfig(Section):
    """One group per LR image; every member has its own noise seed."""

    group_size: int = 12
    """LucidNFT: 12. At least 2: a group of one has no relative advantage."""
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    """CPU threads of one worker."""
    micro_batch: int = Field(0, ge=0)
    """Members sampled at once; 0 samples the whole group as one batch."""
    sampler: SamplerConfig = SamplerConfig()
    deadline_s: float = Field(600.0, gt=0)

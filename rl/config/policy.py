"""The generator, its adapter, and how a group is sampled from it."""

import contextlib
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

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
UNET_ATTN = ("to_q", "to_k", "to_v", "to_out.0")
UNET_ALL = (
    *UNET_ATTN, "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "proj_in", "proj_out",
    "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "attn_add": FLUX2_ATTN_ADD,
    "attn_add_single": FLUX2_ATTN_ADD + FLUX2_SINGLE,
    "attn_add_ffn": FLUX2_ATTN_ADD + FLUX2_FFN,
    "unet_attn": UNET_ATTN,
    "unet_all": UNET_ALL,
}
"""`unet_all` is GDPO-SR's set: attention, convolutions, projections and feed-forwards of a Stable Diffusion UNet.
FoA-SR's default (`attn_add`) and its ablation (`attn_add_ffn`); `attn_add_single` adds the fused projections of
FLUX.2's single blocks, which the paper neither includes nor excludes."""

PolicyType = Literal["flux2sr", "naosd"]
TARGETS_OF: dict[PolicyType, tuple[str, ...]] = {
    "flux2sr": ("attn_add", "attn_add_single", "attn_add_ffn"),
    "naosd": ("unet_all", "unet_attn"),
}
"""The first is the default."""


class LoraConfig(Section):
    """The trained adapter. LucidNFT: rank 32; alpha 64 is DiffusionNFT's value (LucidNFT's is unpublished)."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    targets: Literal["attn_add", "attn_add_single", "attn_add_ffn", "unet_all", "unet_attn"] = "attn_add"
    """Without a value: `attn_add` for flux2sr, `unet_all` for naosd."""
    init_from: str | None = None
    """A diffusers LoRA file to start from; it is loaded into the policy and into the behaviour adapter."""


class PolicyConfig(Section):
    """Which generator, and where its weights are."""

    type: PolicyType = "flux2sr"
    path: str = "mini"
    """`mini` for the embedded weights, or a local diffusers folder: transformer/, vae/ (flux2sr); unet/, vae/,
    scheduler/, tokenizer/, text_encoder/ (naosd)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    gradient_checkpointing: bool = False
    prompt_embeds: str | None = None
    """A safetensors file with `prompt_embeds [L, D]`; the default is the file in the policy's folder."""
    guidance: float = 1.0
    """Read only where the transformer has a guidance embedding (FLUX.2-dev); FoA-SR samples at 1.0."""
    t_add: int = Field(250, ge=0)
    """naosd: DDPM timestep at which the LR latents are noised; more noise, more detail, less fidelity."""
    t_diff: int = Field(100, ge=0)
    """naosd: timestep at which the UNet is called."""
    merge: list[str] = []
    """naosd: published NAOSD and GDPO-SR checkpoints (.pkl) to merge into the folder's weights, in this order."""
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="before")
    @classmethod
    def _targets(cls, raw: Any) -> Any:
        """The default targets depend on the type, which `LoraConfig` does not know."""
        if not isinstance(raw, dict) or raw.get("type", "flux2sr") not in TARGETS_OF:
            return raw
        lora = raw.get("lora", {})
        if isinstance(lora, dict) and "targets" not in lora:
            return {**raw, "lora": {**lora, "targets": TARGETS_OF[raw.get("type", "flux2sr")][0]}}
        return raw

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.lora.targets not in TARGETS_OF[self.type]:
            raise ValueError(
                f"lora.targets must be one of {list(TARGETS_OF[self.type])} for policy '{self.type}', "
                f"got '{self.lora.targets}'"
            )
        if self.merge and self.type != "naosd":
            raise ValueError(f"merge is read only by policy 'naosd', got policy '{self.type}'")
        return self


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


class SDEConfig(Section):
    """Stochastic steps with a likelihood, which policy-gradient objectives need; `rl.flow.sde` has the equations."""

    step: Literal["flow_sde", "cps", "dance"] = "flow_sde"
    """Flow-GRPO's SDE, Coefficients-Preserving Sampling, or DanceGRPO's SDE."""
    noise_level: float = Field(0.7, gt=0)
    """Flow-GRPO 0.7, CPS 0.8 (at most 1), DanceGRPO's eta 0.3."""
    window: Literal["all", "random", "sliding", "fraction"] = "all"
    """Stochastic and trained steps: every step but the last (Flow-GRPO); `size` in a row at random in the first half
    (Flow-GRPO-Fast); the same sliding on by one every `every` iterations (MixGRPO); all stochastic, a random
    `fraction` trained (DanceGRPO)."""
    size: int = Field(4, ge=1)
    every: int = Field(25, ge=1)
    fraction: float = Field(0.6, gt=0, le=1)
    one_step_std: float | None = Field(None, gt=0)
    """Forces a likelihood on a one-step policy, which has none: its latents become the mean of a Gaussian of this
    standard deviation, the group's latents are drawn from it. Nothing else of this section is read then. Ours."""

    @model_validator(mode="after")
    def _level(self) -> Self:
        if self.step == "cps" and self.noise_level > 1:
            raise ValueError(f"sde.noise_level must be at most 1 for step 'cps', got {self.noise_level:g}")
        return self

    def trained_steps(self, steps: int) -> int:
        """How many steps of a run of `steps` are trained; the last one never is."""
        if self.one_step_std is not None:
            return 1
        return {"all": steps - 1, "fraction": int((steps - 1) * self.fraction)}.get(self.window, self.size)


class SamplerConfig(Section):
    """The denoising loop over the shifted flow schedule."""

    solver: Literal["euler", "heun", "dpm2", "sde"] = "dpm2"
    """`dpm2`: second-order multistep, one model call a step (first and last step first order). `heun`: two calls.
    `sde`: groups are sampled with the stochastic steps of `sde`; evaluation takes Euler's."""
    sde: SDEConfig = SDEConfig()
    """Read only by solver `sde`."""
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
    vary: Literal["noise", "t_add"] = "noise"
    """What the members of a group differ by. `t_add` (naosd, GDPO-SR's Table 11): one noise for the group, t_add evenly
    spaced over `t_add_range`."""
    t_add_range: tuple[int, int] = (150, 350)
    """Read only by `vary: t_add`; the paper leaves it open, these are the ends of its Table 10."""
    deadline_s: float = Field(600.0, gt=0)

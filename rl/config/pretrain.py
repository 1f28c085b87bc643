"""The recipe of `isrl pretrain`: a VAE, then FoA-SR's supervised stage, from photographs alone."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from rl.config.base import Section
from rl.config.data import DEGRADATIONS, Degradation, DegradationChoice
from rl.config.load import read_recipe, validate


class PhotoSet(Section):
    """Photographs and how often each is drawn; crops are flipped, rotated, shrunk and channel-permuted."""

    path: list[str] = Field(min_length=1)
    weight: float = Field(1.0, gt=0)


class LpipsWeights(Section):
    """LPIPS v0.1 with SqueezeNet 1.1: torchvision's features and the published heads."""

    backbone: str
    heads: str


class VaeStage(Section):
    """Charbonnier + LPIPS + KL on random crops."""

    steps: int = Field(2000, ge=1)
    batch: int = Field(32, ge=1)
    crop: int = Field(64, ge=16, multiple_of=16)
    lr: float = Field(2e-3, gt=0)
    lpips_weight: float = Field(0.3, ge=0)
    kl_weight: float = Field(1e-3, ge=0)
    blurred_share: float = Field(0.2, ge=0, le=1)
    """Crops shrunk and enlarged by the SR scale, so that the encoder also serves enlarged LR images."""


class TransformerSize(Section):
    """Flux2Transformer2DModel at the preset's size; FLUX.2-dev has 8 + 48 blocks, 48 heads of 128, ratio 3."""

    num_layers: int = 2
    num_single_layers: int = 5
    attention_head_dim: int = 32
    num_attention_heads: int = 5
    mlp_ratio: float = 2.0
    axes_dims_rope: tuple[int, int, int, int] = (8, 8, 8, 8)
    joint_attention_dim: int = 32
    prompt_tokens: int = 4


class FlowStage(Section):
    """L = L_FM + charbonnier_weight L_Charb + lpips_weight L_LPIPS on the decoded x0 = x_t - t v.

    FoA-SR's loss; its weights are unpublished. The two image terms cost a decode, so they are taken on every
    `image_every`-th member of the batch. LPIPS warms up linearly, as in the paper.
    """

    pairs: int = Field(12000, ge=1)
    """Crops whose latents are cached before training, as FoA-SR caches latents."""
    steps: int = Field(3000, ge=1)
    batch: int = Field(32, ge=1)
    lr: float = Field(1.5e-3, gt=0)
    warmup_steps: int = Field(200, ge=1)
    weight_decay: float = Field(1e-2, ge=0)
    charbonnier_weight: float = Field(0.2, ge=0)
    lpips_weight: float = Field(0.1, ge=0)
    image_every: int = Field(8, ge=1)
    image_from: float = Field(0.1, ge=0, le=1)
    """Share of the steps before the image terms begin."""
    lpips_full_from: float = Field(0.3, ge=0, le=1)
    """Share of the steps after which LPIPS has its full weight."""
    ema_decay: float = Field(0.999, ge=0, lt=1)


class PretrainConfig(Section):
    """Everything that makes an embedded preset."""

    seed: int = Field(0, ge=0)
    out: str
    """Folder for transformer/, vae/, prompt_embeds.safetensors, README.md and contact_sheet.png."""
    device: str = "cpu"
    threads: int = Field(2, ge=1)
    photos: list[PhotoSet] = Field(min_length=1)
    held_out: list[str] = Field(min_length=1)
    scale: int = Field(4, ge=1, le=8)
    crop: int = Field(128, ge=32, multiple_of=16)
    degradation: DegradationChoice = "light"
    lpips: LpipsWeights
    vae: VaeStage = VaeStage()
    transformer: TransformerSize = TransformerSize()
    flow: FlowStage = FlowStage()
    sampler_steps: int = Field(10, ge=1)
    """Steps of the samples in the card."""

    @property
    def recipe(self) -> Degradation:
        return DEGRADATIONS[self.degradation] if isinstance(self.degradation, str) else self.degradation


def load_pretrain_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read, override and validate a pre-training recipe."""
    return validate(PretrainConfig, read_recipe(path, overrides), str(path))

"""The recipes of `isrl pretrain`: a preset from photographs; for NAOSD, also from a multi-step model that is there."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rl.config.base import InputPath, ReadWith, Section
from rl.config.degradation import DEGRADATIONS, Degradation, DegradationChoice
from rl.config.open_union import OpenUnion
from rl.config.prompts import PromptSection
from rl.config.rollout import ODESection, OneStepSection


class PhotoSet(Section):
    """Photographs and how often each is drawn; crops are flipped, rotated, shrunk and channel-permuted."""

    path: Annotated[list[str], Field(min_length=1), InputPath()]
    weight: float = Field(1.0, gt=0)


class LpipsWeights(Section):
    """LPIPS v0.1: the features of torchvision's SqueezeNet 1.1 or VGG-16 and the published heads."""

    net: Literal["squeeze", "vgg"] = "squeeze"
    backbone: Annotated[str, InputPath()]
    heads: Annotated[str, InputPath()]


class VaeStage(Section):
    """Charbonnier + LPIPS + KL on random crops."""

    steps: int = Field(2000, ge=1)
    batch: int = Field(32, ge=1)
    crop: int = Field(64, ge=16, multiple_of=16)
    lr: float = Field(2e-3, gt=0)
    lpips_weight: float = Field(0.3, ge=0)
    kl_weight: float = Field(1e-3, ge=0)
    blurred_share: float = Field(0.2, ge=0, le=1)
    """Share of crops shrunk and re-enlarged by the SR scale, so that the encoder also handles enlarged LR images."""

    @property
    def summary(self) -> str:
        """For `isrl plan` and the card."""
        return f"{self.steps} steps of {self.batch} crops of {self.crop} px"


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

    FoA-SR's loss; its weights are unpublished. The two image terms need a decode, so they are computed on every
    `image_every`-th member of the batch only. LPIPS warms up linearly, as in the paper.
    """

    steps: int = Field(3000, ge=1)
    batch: int = Field(32, ge=1)
    lr: float = Field(1.5e-3, gt=0)
    warmup_steps: int = Field(200, ge=1)
    weight_decay: float = Field(1e-2, ge=0)
    charbonnier_weight: float = Field(0.2, ge=0)
    lpips_weight: float = Field(0.1, ge=0)
    image_every: int = Field(8, ge=1)
    image_from: float = Field(0.1, ge=0, le=1)
    """Share of the steps before the image terms start."""
    lpips_full_from: float = Field(0.3, ge=0, le=1)
    """Share of the steps after which LPIPS reaches its full weight."""
    ema_decay: float = Field(0.999, ge=0, lt=1)


class UNetSize(Section):
    """UNet2DConditionModel at the preset's size; Stable Diffusion 2.1 has 320, 640, 1280, 1280 channels, 2 layers."""

    block_out_channels: tuple[int, ...] = (48, 80, 96)
    layers_per_block: int = Field(1, ge=1)
    attention_head_dim: int = Field(4, ge=1)
    cross_attention_dim: int = Field(32, ge=1)
    prompt_tokens: int = Field(4, ge=1)


class KLVaeSize(Section):
    """AutoencoderKL at the preset's size, 8x; Stable Diffusion has 128, 256, 512, 512 channels and 4 latent ones."""

    block_out_channels: tuple[int, int, int, int] = (16, 32, 64, 64)
    latent_channels: int = Field(16, ge=1)


class TeacherStage(Section):
    """The multi-step teacher: eps-prediction on HR latents, mean (e - eps)^2 at t ~ U[0, T)."""

    steps: int = Field(3000, ge=1)
    batch: int = Field(32, ge=1)
    lr: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=1)
    weight_decay: float = Field(1e-2, ge=0)
    drop_prompt: float = Field(0.1, ge=0, lt=1)
    """Share of samples trained under the negative prompt, for classifier-free guidance."""


class StudentStage(Section):
    """NAOSD's generator: pixel + lpips_weight LPIPS + vsd_weight VSD, and the fake score."""

    steps: int = Field(3000, ge=1)
    batch: int = Field(8, ge=1)
    lr: float = Field(5e-5, gt=0)
    """GDPO-SR: 5e-5, constant."""
    warmup_steps: int = Field(100, ge=1)
    floor: float = Field(1.0, ge=0, le=1)
    """Share of `lr` left at the end of the cosine decay; 1 keeps it constant, as published."""
    weight_decay: float = Field(1e-2, ge=0)
    pixel: Literal["l2", "l1"] = "l2"
    """The published code uses L2; the paper writes L1."""
    pixel_weight: float = Field(1.0, ge=0)
    lpips_weight: float = Field(2.0, ge=0)
    vsd_weight: float = Field(1.0, ge=0)
    lora_rank: int = Field(4, ge=1)
    """On the VAE encoder and the UNet; the UNet's conv_in is trained in full."""
    lora_alpha: float = Field(8.0, gt=0)
    fake_rank: int = Field(4, ge=1)
    fake_lr: float = Field(5e-5, gt=0)
    accumulate: int = Field(1, ge=1)
    """Batches per optimiser step."""
    guidance: float = Field(7.5, ge=0)
    """Guidance scale of the real score."""
    autocast: bool = False
    """bfloat16 autocast; the published run uses fp16."""
    t_range: tuple[float, float] = (0.02, 0.5)
    """Range of VSD's timestep, as shares of T; OSEDiff goes up to 0.98."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; an interrupted stage resumes from the last one when the same command is run again."""
    clamp: bool = True
    """Clamp the decoded image to the pixel range before the losses, as published."""
    t_add_range: tuple[int, int] | None = None
    """Draw each sample's t_add uniformly from this range, ends included. None: `t_add` for all, as published. Ours: a
    small model trained at a single noise level cannot handle the others that inference may ask for."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.t_add_range is not None and not 0 <= self.t_add_range[0] <= self.t_add_range[1] < 1000:
            raise ValueError(f"t_add_range: expected 0 <= low <= high < 1000, got {self.t_add_range}")
        return self

    @property
    def summary(self) -> str:
        """For `isrl plan` and the card."""
        return (
            f"{self.steps} steps of {self.batch} x {self.accumulate}, LoRA rank {self.lora_rank}, "
            f"{self.pixel_weight:g} {self.pixel.upper()} + {self.lpips_weight:g} LPIPS + {self.vsd_weight:g} VSD"
        )


class PretrainSection(Section):
    """What every preset needs."""

    maker: ClassVar[str]
    """`module:function` that trains and writes the preset and returns the card's lines on its stages."""

    kind: Literal["pretrain"] = "pretrain"
    type: str
    seed: int = Field(0, ge=0)
    out: str
    """Folder for the weights, README.md, scores.json and contact_sheet.png."""
    device: str = "cpu"
    threads: int = Field(2, ge=1)
    photos: list[PhotoSet] = Field(min_length=1)
    held_out: Annotated[list[str], Field(min_length=1), InputPath()]
    scale: int = Field(4, ge=1, le=8)
    crop: int = Field(128, ge=32, multiple_of=16)
    degradation: DegradationChoice = "light"
    lpips: LpipsWeights

    @property
    def sampler(self) -> ODESection | OneStepSection:
        """How the samples in the card are made."""
        raise NotImplementedError

    def stages(self) -> list[tuple[str, str]]:
        """What `isrl plan` shows: (stage, its size)."""
        return [("maker", self.maker)]

    @property
    def recipe(self) -> Degradation:
        return DEGRADATIONS[self.degradation] if isinstance(self.degradation, str) else self.degradation


class FlowPretrain(PretrainSection):
    """A flux2sr preset: VAE, then LR-conditioned flow."""

    maker = "learner.pretraining.flux2sr:make_flux2sr"

    type: Literal["flux2sr"] = "flux2sr"
    vae: VaeStage = VaeStage()
    pairs: int = Field(12000, ge=1)
    """Number of crops; their latents are cached before training, as in FoA-SR."""
    transformer: TransformerSize = TransformerSize()
    flow: FlowStage = FlowStage()
    sampler_steps: int = Field(10, ge=1)
    """Steps of the samples in the card."""

    @property
    def sampler(self) -> ODESection:
        return ODESection(steps=self.sampler_steps)

    def stages(self) -> list[tuple[str, str]]:
        flow = f"{self.flow.steps} steps of {self.flow.batch} out of {self.pairs} cached crops of {self.crop} px"
        return [("vae", self.vae.summary), ("flow", flow)]


class NAOSDPretrain(PretrainSection):
    """NAOSD: a one-step student distilled from a multi-step model in Stable Diffusion's layout."""

    maker = "learner.pretraining.naosd:make_naosd"

    type: Literal["naosd"] = "naosd"
    base: Annotated[str | None, InputPath()] = None
    """Folder of the multi-step model. None: first trained on the photographs and written to `out`/base; only then are
    `vae`, `vae_size`, `unet`, `pairs` and `teacher` read."""
    vae: Annotated[VaeStage, ReadWith("base", None)] = VaeStage()
    vae_size: Annotated[KLVaeSize, ReadWith("base", None)] = KLVaeSize()
    pairs: Annotated[int, Field(ge=1), ReadWith("base", None)] = 12000
    """Number of crops; their latents are cached before the multi-step model is trained."""
    unet: Annotated[UNetSize, ReadWith("base", None)] = UNetSize()
    teacher: Annotated[TeacherStage, ReadWith("base", None)] = TeacherStage()
    augment: bool = True
    """Shrink, rotate, mirror and channel-permute the student's crops."""
    flip: Annotated[bool, ReadWith("augment", False)] = False
    """Mirror each of the student's crops with probability 1/2."""
    enlargement: Literal["bicubic", "random"] = "bicubic"
    """How LR images are enlarged for the student; `random` draws bicubic, bilinear or area for each."""
    student: StudentStage = StudentStage()
    prompts: PromptSection = PromptSection()
    """Prompts of the HR photographs. A base without a text encoder has one embedding for all of them."""
    negative_prompt: str = ""
    """For the real score's guidance."""
    t_add: int = Field(250, ge=0, lt=1000)
    t_diff: int = Field(100, ge=0, lt=1000)

    @property
    def sampler(self) -> OneStepSection:
        return OneStepSection()

    def stages(self) -> list[tuple[str, str]]:
        stage = self.teacher
        teacher = f"{stage.steps} steps of {stage.batch} out of {self.pairs} cached crops of {self.crop} px"
        base = [] if self.base else [("vae", self.vae.summary), ("teacher", teacher)]
        return [*base, ("student", f"{self.student.summary} on crops of {self.crop} px")]


PRETRAINS = OpenUnion(
    {"flux2sr": "rl.config.pretrain:FlowPretrain", "naosd": "rl.config.pretrain:NAOSDPretrain"},
    base=PretrainSection,
    default="flux2sr",
)

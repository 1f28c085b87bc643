"""NAOSD (GDPO-SR, arXiv 2603.16769): a one-step student distilled from a multi-step model.

    student   pixel(y, HR) + lpips_weight LPIPS(y, HR) + vsd_weight VSD(x0)    y = D(x0), x0 by NAOSD's one step
    fake      mean (e_fake(x0_t, t, text) - eps)^2                            after every student step, t ~ U[0, T)

As published, the student is the multi-step model with a trained conv_in and LoRA on the UNet and the VAE encoder. The
real score is the frozen model with classifier-free guidance, the fake score is that model with a LoRA. Here both share
one UNet; the real score switches its adapter off.
"""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from learner.pretraining import progress
from learner.pretraining.stable_diffusion import make_base, noise_loss, predict
from learner.pretraining.supervised import Log, cosine, describe_vae, set_lr, to_tensor
from rl.config.pretrain import NAOSDPretrain, StudentStage
from rl.data.crops import CropSource
from rl.data.degradation import degrade, target
from rl.data.prompts import load_prompts
from rl.data.source import ENLARGEMENTS
from rl.flow.ddpm import guided, noised, predicted_x0
from rl.objectives.lpips import Lpips
from rl.objectives.vsd import vsd_loss
from rl.policies.base import LatentCondition, enlarged
from rl.policies.lora import active, target_modules
from rl.policies.naosd.policy import NAOSD
from rl.policies.naosd.section import UNET_ALL, NAOSDSection
from rl.seeding import derive_seed
from rl.types import U8

VAE_ENCODER = ("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "to_q", "to_k", "to_v", "to_out.0")
STUDENT, FAKE = "student", "fake"
KEPT = ("scheduler", "tokenizer", "text_encoder", "prompt_embeds.safetensors")
"""What a NAOSD folder copies unchanged from its base."""


def make_naosd(config: NAOSDPretrain, lpips: Lpips, log: Log) -> str:
    """Distil the student; write a folder for `from_pretrained`, in fp16."""
    out = Path(config.out)
    stage, interrupted = config.student, progress.read(config)
    if config.base:
        base = Path(config.base).expanduser()
    else:
        base = out / "base" if interrupted else make_base(config, lpips, log)
    # reseed here, so that a base trained earlier gives the same student
    torch.manual_seed(derive_seed(config.seed, "student"))
    student = load_student(base, config)
    teacher = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
    teacher.requires_grad_(False).to(config.device)
    teacher.add_adapter(_lora(stage.fake_rank, stage.lora_alpha, target_modules(teacher, UNET_ALL)), FAKE)
    Distillation(student, teacher, lpips, config).run(log, interrupted)
    for model, name in ((student.vae, "vae"), (student.unet, "unet")):
        model.fuse_lora()
        model.unload_lora()
        model.half().save_pretrained(out / name)
    for name in KEPT:
        if (base / name).is_dir():
            shutil.copytree(base / name, out / name, dirs_exist_ok=True)
        elif (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    (out / progress.FILE).unlink(missing_ok=True)
    return describe_naosd(config)


def load_student(base: Path, config: NAOSDPretrain) -> NAOSD:
    """The base as a one-step policy, with LoRA on the UNet and the VAE encoder, and conv_in trainable."""
    stage = config.student
    section = NAOSDSection.model_validate(
        {"path": str(base.absolute()), "device": config.device, "t_add": config.t_add, "t_diff": config.t_diff}
    )
    policy = NAOSD.from_folder(section.folder(), section)
    unet, vae = policy.unet, policy.vae
    layers = [name for name in target_modules(unet, UNET_ALL) if name != "conv_in"]
    unet.add_adapter(_lora(stage.lora_rank, stage.lora_alpha, layers), STUDENT)
    unet.conv_in.requires_grad_(True)
    encoder = [name for name in target_modules(vae, VAE_ENCODER) if name.startswith("encoder.")]
    vae.add_adapter(_lora(stage.lora_rank, stage.lora_alpha, [*encoder, "quant_conv"]), STUDENT)
    return policy


class Distillation:
    """The student stage: each step updates the student once, then the fake score once."""

    def __init__(self, student: NAOSD, teacher: UNet2DConditionModel, lpips: Lpips, config: NAOSDPretrain) -> None:
        self.student, self.teacher, self.lpips, self.config = student, teacher, lpips, config
        self.stage: StudentStage = config.student
        self.both = nn.ModuleList([student.unet, student.vae])
        self.optimizer = _adamw(self.both, self.stage.lr, self.stage)
        self.fake_optimizer = _adamw(teacher, self.stage.fake_lr, self.stage)
        self.scheduler = student.scheduler
        self.source = CropSource(
            config.photos, derive_seed(config.seed, "student"), augment=config.augment, flip=config.flip
        )
        self.prompts = load_prompts(config.prompts, self.source.names)
        self.negative = student.prompts.negative(config.negative_prompt).to(student.device)
        self.drawn = 0

    def run(self, log: Log, interrupted: dict[str, Any] | None = None) -> None:
        """Train in place, from where an `interrupted` run stopped; afterwards the student's weights are frozen."""
        stage = self.stage
        recent: list[list[float]] = []
        done = 0
        if interrupted is not None:
            done = self.resume(interrupted)
            log(f"student: resumes after step {done} of {stage.steps}")
        for step in range(done, stage.steps):
            set_lr(self.optimizer, stage.lr * cosine(step, stage.steps, floor=stage.floor, warmup=stage.warmup_steps))
            recent = [*recent[-99:], self.step()]
            if step % 100 == 99:
                shown = ", ".join(f"{v:.4f}" for v in np.mean(recent, axis=0))
                log(f"student {step + 1}/{stage.steps}: pixel, LPIPS, VSD, fake {shown}")
            if (step + 1) % stage.checkpoint_every == 0:
                progress.write(self.config, self.state(step + 1))
        self.both.requires_grad_(False).eval()

    def state(self, done: int) -> dict[str, Any]:
        """Everything that step `done` (from 0) depends on."""
        return {
            "done": done,
            "drawn": self.drawn,
            "crops": self.source.state,
            "trained": [parameter.detach() for parameter in self._trained()],
            "optimizers": [self.optimizer.state_dict(), self.fake_optimizer.state_dict()],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.config.device) if self._on_cuda() else None,
        }

    @torch.no_grad()
    def resume(self, state: dict[str, Any]) -> int:
        """Restore what `state` returned; returns the number of finished steps."""
        for parameter, value in zip(self._trained(), state["trained"], strict=True):
            parameter.copy_(value)
        for optimizer, kept in zip((self.optimizer, self.fake_optimizer), state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.drawn, self.source.state = state["drawn"], state["crops"]
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and self._on_cuda():
            torch.cuda.set_rng_state(state["cuda"], self.config.device)
        done: int = state["done"]
        return done

    def _trained(self) -> list[nn.Parameter]:
        return [p for model in (self.both, self.teacher) for p in model.parameters() if p.requires_grad]

    def _on_cuda(self) -> bool:
        return torch.device(self.config.device).type == "cuda"

    def step(self) -> list[float]:
        """One optimiser step of each; returns the mean losses over its batches."""
        terms = []
        latents = []
        for _ in range(self.stage.accumulate):
            hr, lr, text = self.batch()
            with self.autocast():
                x0, losses = self.losses(hr, lr, text)
            s = self.stage
            total = s.pixel_weight * losses[0] + s.lpips_weight * losses[1] + s.vsd_weight * losses[2]
            torch.autograd.backward(total / s.accumulate)
            latents.append((x0.detach(), text))
            terms.append([float(value.detach()) for value in losses])
        _update(self.optimizer, self.both)
        fakes = []
        for x0, text in latents:
            with self.autocast(), active(self.teacher, FAKE):
                fake = noise_loss(self.teacher, x0, text, self.scheduler)
            torch.autograd.backward(fake / self.stage.accumulate)
            fakes.append(float(fake.detach()))
        _update(self.fake_optimizer, self.teacher)
        return [*np.mean(terms, axis=0), float(np.mean(fakes))]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """HR and enlarged LR `[B, 3, H, W]` in [-1, 1] and prompt embeddings `[B, L, D]`."""
        config, device = self.config, self.student.device
        names, crops = zip(*(self.source.named_crop(config.crop) for _ in range(self.stage.batch)), strict=True)
        seeds = [derive_seed(config.seed, "student", self.drawn + i) for i in range(len(crops))]
        self.drawn += len(crops)
        small = [
            degrade(c, scale=config.scale, recipe=config.recipe, seed=s) for c, s in zip(crops, seeds, strict=True)
        ]
        lr = torch.cat([self._enlarged(image, seed) for image, seed in zip(small, seeds, strict=True)])
        text = torch.cat([self.student.prompts(self.prompts[name]) for name in names])
        return to_tensor([target(c, config.recipe) for c in crops]).to(device), lr.to(device), text.to(device)

    def _enlarged(self, small: U8, seed: int) -> Tensor:
        """LR `[h, w, 3]` -> `[1, 3, H, W]` in [-1, 1]."""
        draw = derive_seed(seed, "enlarge") % len(ENLARGEMENTS)
        way = ENLARGEMENTS[draw] if self.config.enlargement == "random" else "bicubic"
        return enlarged(small.transpose(2, 0, 1), self.config.scale, 1, way)

    def losses(self, hr: Tensor, lr: Tensor, text: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """x0 `[B, C, h, w]` and the pixel, LPIPS and VSD losses."""
        low, high = self.stage.t_add_range or (self.config.t_add, self.config.t_add)
        x0 = one_step(self.student, lr, text, torch.randint(low, high + 1, (len(lr),), device=lr.device))
        y = self.student.decode(x0).float()
        y = y.clamp(-1, 1) if self.stage.clamp else y
        pixel = nn.functional.mse_loss(y, hr) if self.stage.pixel == "l2" else nn.functional.l1_loss(y, hr)
        return x0, (pixel, self.lpips(y, hr).mean(), self.distil(x0, text))

    def distil(self, x0: Tensor, text: Tensor) -> Tensor:
        """The VSD loss on the student's latents."""
        steps, alphas = self.scheduler.config.num_train_timesteps, self.scheduler.alphas_cumprod
        low, high = (int(share * steps) for share in self.stage.t_range)
        t = torch.randint(low, high, (len(x0),), device=x0.device)
        abar = alphas.to(x0.device)[t]
        with torch.no_grad():
            z_t = noised(x0, torch.randn_like(x0), abar)
            with active(self.teacher, FAKE):
                e_fake = predict(self.teacher, z_t, t, text)
            with active(self.teacher, None):
                e_real = predict(self.teacher, z_t, t, text)
                if self.stage.guidance != 1.0:
                    negative = predict(self.teacher, z_t, t, self.negative.expand(len(x0), -1, -1))
                    e_real = guided(negative, e_real, self.stage.guidance)
            fake_x0, real_x0 = (predicted_x0(z_t, e, abar) for e in (e_fake, e_real))
        return vsd_loss(x0, fake_x0, real_x0)

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """bfloat16 if the recipe asks for it."""
        return torch.autocast(self.config.device, torch.bfloat16) if self.stage.autocast else nullcontext()


def one_step(student: NAOSD, lr: Tensor, text: Tensor, t_add: Tensor) -> Tensor:
    """x0 `[B, C, h, w]` from enlarged LR images `[B, 3, H, W]` in [-1, 1], noised at `t_add` `[B]`, with gradients to
    encoder and UNet."""
    z = student.vae.encode(lr).latent_dist.mode() * student.vae.config.scaling_factor
    z_t = noised(z, torch.randn_like(z), student.alphas_cumprod.to(z.device)[t_add])
    conditions = [LatentCondition(z[i : i + 1].detach(), text[i : i + 1]) for i in range(len(z))]
    return student.clean(z_t, student.prediction(z_t, t_add, conditions), t_add)


def _lora(rank: int, alpha: float, layers: Sequence[str]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(layers))


def _adamw(model: nn.Module, lr: float, stage: StudentStage) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=stage.weight_decay)


def _update(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def describe_naosd(config: NAOSDPretrain) -> str:
    """The card's lines on the stages."""
    teacher, student = config.teacher, config.student
    base = (
        f"Multi-step model: {config.base}."
        if config.base
        else (
            f"{describe_vae(config.vae)}\nMulti-step model: {teacher.steps} steps of {teacher.batch} out of "
            f"{config.pairs} cached latents, eps-prediction."
        )
    )
    levels = config.t_add if student.t_add_range is None else "{} to {}".format(*student.t_add_range)
    return (
        f"{base}\nStudent: {student.steps} steps of {student.batch * student.accumulate}, {student.pixel_weight:g} "
        f"{student.pixel.upper()} + {student.lpips_weight:g} LPIPS + {student.vsd_weight:g} VSD,\nLoRA rank "
        f"{student.lora_rank} on UNet and encoder, t_add {levels}, t_diff {config.t_diff}."
    )

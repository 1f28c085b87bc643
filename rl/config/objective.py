"""Objectives: each section holds the parameters of one algorithm and declares what that algorithm needs from a run.

The rest of the code reads the declaration and never compares names. Your own objective extends `ObjectiveSection`; a
recipe selects it by `type: package.module:Class`.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rl.config.base import Section
from rl.config.open_union import OpenUnion

if TYPE_CHECKING:
    from rl.config.policy import PolicySection
    from rl.config.rollout import SamplerSection

Anchor = Literal["newest", "behaviour"]
Order = Literal["timesteps", "samples"]
Judged = Literal["image", "cell"]


class OldDecay(Section):
    """theta_old <- eta theta_old + (1 - eta) theta after each batch, s = optimiser steps so far.

    `none`: eta = 0. `ramp`: eta = min(0.001 s, 0.5). `delayed`: eta = 0 until s = 75, then
    min(0.0075 (s - 75), 0.999). The three published schedules (DiffusionNFT code, decay types 0, 1, 2).
    """

    schedule: Literal["none", "ramp", "delayed"] = "ramp"


class ObjectiveSection(Section):
    """What every objective declares."""

    builder: ClassVar[str]
    """`module:Class` of the `rl.objectives.base.Objective`."""
    likelihood: ClassVar[bool] = False
    """Groups carry a trajectory: their sampling steps have a likelihood, and training repeats the sampling
    micro-batches exactly."""
    pairs: ClassVar[bool] = False
    """Trains on pairs of members (`rl.preferences`) instead of all members."""
    online_only: ClassVar[str | None] = None
    """Why it cannot train on mined images, as the end of a sentence; None where it can."""
    online_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that control how groups are sampled."""
    spatial_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that are read only with `advantage.spatial: map`."""
    varied_levels: ClassVar[bool] = False
    """Members of a group may differ in noise level instead of noise."""

    type: str

    @property
    def from_reference(self) -> bool:
        """Groups are sampled with the reference instead of the newest adapter."""
        return False

    @property
    def keeps_mean(self) -> bool:
        """A trajectory carries the means of its steps."""
        return False

    @property
    def reference_needed(self) -> bool:
        """The loss compares against the reference."""
        return False

    @property
    def anchor_needed(self) -> Anchor | None:
        """The adapter, besides the reference, that anchors the loss; None where there is none."""
        return None

    @property
    def reward_weight_clip(self) -> float | None:
        """DiffusionNFT's Z, where advantages become reward weights r = clip(1/2 + A / (2 Z), 0, 1)."""
        return None

    @property
    def update_order(self) -> Order:
        """How micro-batches are divided among the updates of a batch. `timesteps`: each update sees every group at
        some of its slots. `samples`: each update sees some of the members at all slots."""
        return "timesteps"

    def slots(self, sampler: "SamplerSection") -> int:
        """How often each member is trained on in one batch: timesteps, steps of a trajectory, or draws of noise."""
        raise NotImplementedError

    def forwards(self, parts: int = 1) -> int:
        """Forward passes of the backbone for one micro-batch, `parts` of which make a group."""
        return 1 + self.reference_needed + (self.anchor_needed is not None)

    def check(self, policy: "PolicySection", sampler: "SamplerSection") -> None:
        """Raise ValueError for what this objective cannot train."""


class NFTSection(ObjectiveSection):
    """DiffusionNFT (arXiv 2509.16117) as in its code; LucidNFT publishes none of these values."""

    builder = "rl.objectives.nft:NFTObjective"
    online_only = "trains on the clean latents that a worker sampled, and pools hold images"
    spatial_keys = frozenset({"normaliser"})

    type: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    """Mixing of old and new velocity. 1 is stable, 0.1 (multi-reward) is faster."""
    adv_clip_max: float = Field(5.0, gt=0)
    kl_weight: float = Field(1e-4, ge=0)
    """Weight of mean (v_theta - v_ref)^2; at 0 the reference forward is skipped. Not `beta`."""
    old_decay: OldDecay = OldDecay()
    anchor: Anchor = "newest"
    """Which `old` adapter the implicit policies are built around when groups are older than the newest version: the
    newest, or the behaviour policy that sampled the group. Without lag both are the same."""
    timestep_fraction: float = Field(0.99, gt=0, le=1)
    """Share of the sampler's grid that each member is trained on: floor(steps * fraction) random points."""
    normaliser: Literal["sample", "cell"] = "sample"
    """With `advantage.spatial: map`, what the squared error of a cell is divided by: the mean absolute error of its
    sample, or that of the cell."""
    allow_one_step: bool = False
    """DiffusionNFT's authors call one-step generators unsupported; set true to try anyway."""

    @property
    def reference_needed(self) -> bool:
        return self.kl_weight > 0

    @property
    def anchor_needed(self) -> Anchor:
        return self.anchor

    @property
    def reward_weight_clip(self) -> float:
        return self.adv_clip_max

    def slots(self, sampler: "SamplerSection") -> int:
        """floor(steps * fraction), DiffusionNFT's number of trained grid points per member; 1 for a single step."""
        return 1 if sampler.steps_taken == 1 else int(sampler.steps_taken * self.timestep_fraction)

    def check(self, policy: "PolicySection", sampler: "SamplerSection") -> None:
        if policy.one_step and not self.allow_one_step:
            raise ValueError(
                f"objective '{self.type}' needs a multi-step generator, got policy '{policy.type}' (DiffusionNFT's "
                "authors: unsupported); use objective gdpo, or set objective.allow_one_step: true"
            )
        if self.allow_one_step and not policy.one_step:
            raise ValueError(
                f"objective.allow_one_step is read only with a one-step policy, got '{policy.type}'; remove it"
            )
        if self.slots(sampler) < 1:
            raise ValueError(
                f"objective.timestep_fraction {self.timestep_fraction} of {sampler.steps_taken} sampler steps leaves "
                "no timestep to train on; raise one of them"
            )


class PreferenceSection(ObjectiveSection):
    """What GDPO and Diffusion-DPO share."""

    varied_levels = True
    online_keys = frozenset({"sample_from"})

    sample_from: Literal["reference", "policy"] = "reference"
    """`reference`: groups come from the frozen reference, as in GDPO-SR and, in effect, with offline pairs. `policy`:
    from the newest adapter."""
    draws: int = Field(1, ge=1)
    """Noise draws per group."""

    @property
    def from_reference(self) -> bool:
        return self.sample_from == "reference"

    @property
    def reference_needed(self) -> bool:
        return True

    def slots(self, sampler: "SamplerSection") -> int:
        """One per noise draw, regardless of the sampler's steps."""
        return self.draws


class GDPOSection(PreferenceSection):
    """GDPO-SR (arXiv 2603.16769), its published values."""

    builder = "rl.objectives.gdpo:GDPOObjective"
    spatial_keys = frozenset({"judged"})

    type: Literal["gdpo"] = "gdpo"
    omega: float = Field(5000.0, gt=0)
    """Strength of the preference; in the published loss it has a factor 1/2 and multiplies mean squared errors."""
    noise: Literal["member", "group"] = "member"
    """`member`: each has its own, as published. `group`: all share one, as in Diffusion-DPO's pairs (ours). The noise
    itself then adds the same error to every member, and the advantages, which sum to 0, cancel it."""
    judged: Judged = "image"
    """With `advantage.spatial: map`: one log-sigmoid of the sum over the cells, or the mean of one per cell."""

    def forwards(self, parts: int = 1) -> int:
        """A group in parts needs a first pass over all errors (`rl.objectives.preference`)."""
        return super().forwards(parts) + (parts > 1)


class DiffusionDPOSection(PreferenceSection):
    """Diffusion-DPO (arXiv 2311.12908) on pairs of each fresh group."""

    builder = "rl.objectives.diffusion_dpo:DiffusionDPOObjective"
    pairs = True
    spatial_keys = frozenset({"stitched"})

    type: Literal["diffusion_dpo"] = "diffusion_dpo"
    beta: float = Field(5000.0, gt=0)
    stitched: Literal["latents", "pixels"] = "pixels"
    """With `advantage.spatial: map`, winner and loser are stitched from the best and the worst member of each cell: as
    pixels, two images that are encoded with their seams, or as latents, for which all members are encoded."""


class GRPOSection(ObjectiveSection):
    """Flow-GRPO (arXiv 2505.05470), DanceGRPO (2505.07818), MixGRPO (2507.21802), GRPO-Guard (2510.22319); the table of
    published values is in `rl.objectives.grpo`, the steps and windows are `rollout.sampler.sde`."""

    builder = "rl.objectives.grpo:GRPOObjective"
    online_only = "needs the likelihoods of a trajectory, and pools hold images"
    likelihood = True

    type: Literal["grpo"] = "grpo"
    clip: float = Field(1e-4, gt=0, lt=1)
    """Clip range of the ratio, with log-probabilities averaged over the latent: 1e-4; Fast 1e-5; Guard 2e-6 to 4e-6."""
    adv_clip_max: float = Field(5.0, gt=0)
    kl_weight: float = Field(0.04, ge=0)
    """Weight of mean (mu - mu_ref)^2 / (2 sigma_t^2); at 0 the reference forward is skipped. DanceGRPO and Guard: 0."""
    guard: bool = False
    """GRPO-Guard's normalised log-ratio; refused for step `cps`, which publishes no density."""
    weight_by_dt: bool = False
    """Multiply a step's loss by 1 / dt, GRPO-Guard's weight."""
    order: Order = "timesteps"
    """`samples`, as published: micro-batches of members are shuffled over the batch, and each update sees its share of
    them at all trained steps. `timesteps`: each update sees every group at some steps."""

    @property
    def update_order(self) -> Order:
        return self.order

    @property
    def keeps_mean(self) -> bool:
        return self.guard

    @property
    def reference_needed(self) -> bool:
        return self.kl_weight > 0

    def slots(self, sampler: "SamplerSection") -> int:
        """One per trained step of the trajectory."""
        return sampler.trained_steps

    def check(self, policy: "PolicySection", sampler: "SamplerSection") -> None:
        if sampler.likelihood:
            if self.guard and getattr(getattr(sampler, "sde", None), "step", None) == "cps":
                raise ValueError(
                    "objective.guard needs a step with a density, got rollout.sampler.sde.step 'cps'; write "
                    "rollout.sampler.sde.step=flow_sde"
                )
            return
        if policy.one_step:
            raise ValueError(
                f"objective '{self.type}' needs a multi-step generator, got policy '{policy.type}': one step has no "
                "trajectory to take a likelihood of; write objective.type=gdpo, or give its latents a Gaussian with "
                "rollout.sampler={solver: gaussian, std: 0.1}"
            )
        raise ValueError(
            f"objective '{self.type}' needs a stochastic sampler, got rollout.sampler.solver '{sampler.solver}': an "
            "ODE has no likelihood; write rollout.sampler.solver=sde"
        )


OBJECTIVES: dict[str, str] = {
    "nft": "rl.config.objective:NFTSection",
    "gdpo": "rl.config.objective:GDPOSection",
    "diffusion_dpo": "rl.config.objective:DiffusionDPOSection",
    "grpo": "rl.config.objective:GRPOSection",
}
AnyObjective = Annotated[ObjectiveSection, OpenUnion(OBJECTIVES, base=ObjectiveSection, default="nft")]

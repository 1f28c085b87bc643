"""How a group is sampled: workers, group size, and one section per kind of sampler."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rl.config.base import ReadWith, Section
from rl.config.open_union import OpenUnion

Range = tuple[int, int]


class SDESection(Section):
    """Stochastic steps with a likelihood, which ratio objectives need; `rl.flow.sde` has the equations."""

    step: Literal["flow_sde", "cps", "dance"] = "flow_sde"
    """Flow-GRPO's SDE, Coefficients-Preserving Sampling, or DanceGRPO's SDE."""
    noise_level: float = Field(0.7, gt=0)
    """Flow-GRPO 0.7, CPS 0.8 (at most 1), DanceGRPO's eta 0.3."""
    window: Literal["all", "random", "sliding", "fraction"] = "all"
    """Stochastic and trained steps. `all`: every step but the last (Flow-GRPO). `random`: `size` consecutive steps in
    the first half (Flow-GRPO-Fast). `sliding`: `size` consecutive steps, moved on by one every `every` iterations
    (MixGRPO). `fraction`: stochastic as in `all`, with a random `fraction` of them trained (DanceGRPO)."""
    size: Annotated[int, Field(ge=1), ReadWith("window", "random", "sliding")] = 4
    every: Annotated[int, Field(ge=1), ReadWith("window", "sliding")] = 25
    fraction: Annotated[float, Field(gt=0, le=1), ReadWith("window", "fraction")] = 0.6
    noise: Literal["member", "group"] = "member"
    """The initial noise. `member`: each member has its own (Flow-GRPO). `group`: all share one and differ only in their
    stochastic steps (DanceGRPO)."""

    @model_validator(mode="after")
    def _level(self) -> Self:
        if self.step == "cps" and self.noise_level > 1:
            raise ValueError(f"noise_level must be at most 1 for step 'cps', got {self.noise_level:g}")
        return self


class SamplerSection(Section):
    """What every sampler declares."""

    likelihood: ClassVar[bool] = False
    """Its steps have a likelihood, which ratio objectives need."""

    solver: str

    @property
    def steps_taken(self) -> int:
        """Denoising steps of one image."""
        raise NotImplementedError

    @property
    def trained_steps(self) -> int:
        """Number of steps with a likelihood recorded for training; 0 without one."""
        return 0

    @property
    def deterministic(self) -> "SamplerSection":
        """The sampler of an evaluation: this one, or its deterministic counterpart."""
        return self

    @property
    def shared_noise(self) -> bool:
        """All members of a group start from the same noise."""
        return False

    def member_levels(self, members: int) -> tuple[float, ...] | None:
        """Each member's noise level; None where all use the policy's."""
        return None


class ODESection(SamplerSection):
    """An ODE solver over the policy's noise schedule."""

    solver: Literal["dpm2", "euler", "heun"] = "dpm2"
    """`dpm2`: second-order multistep, one model call a step (first and last step first order). `heun`: two calls."""
    steps: int = Field(10, ge=1)

    @property
    def steps_taken(self) -> int:
        return self.steps


class StochasticSection(SamplerSection):
    """Stochastic steps in a window, Euler steps elsewhere; an evaluation uses Euler steps throughout."""

    likelihood = True

    solver: Literal["sde"] = "sde"
    steps: int = Field(10, ge=2)
    sde: SDESection = SDESection()

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        span = self.steps // 2 if self.sde.window == "random" else self.steps - 1
        if not 1 <= self.trained_steps <= span:
            raise ValueError(
                f"sde.window '{self.sde.window}' must train 1 to {span} of {self.steps} steps, got "
                f"{self.trained_steps}; change sde.size, sde.fraction or steps"
            )
        return self

    @property
    def steps_taken(self) -> int:
        return self.steps

    @property
    def trained_steps(self) -> int:
        """The last step is never trained."""
        last = self.steps - 1
        return {"all": last, "fraction": int(last * self.sde.fraction)}.get(self.sde.window, self.sde.size)

    @property
    def shared_noise(self) -> bool:
        return self.sde.noise == "group"

    @property
    def deterministic(self) -> ODESection:
        return ODESection(solver="euler", steps=self.steps)


class OneStepSection(SamplerSection):
    """One model call produces the image."""

    solver: Literal["one_step"] = "one_step"
    t_add_range: Range | None = None
    """None: the members of a group differ in their noise. A range: they share one noise and differ in t_add, evenly
    spaced over the range, ends included (GDPO-SR's Table 11, which does not give the range; its Table 10 spans 150 to
    350)."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.t_add_range is not None and not 0 <= self.t_add_range[0] < self.t_add_range[1] < 1000:
            raise ValueError(f"t_add_range: expected 0 <= low < high < 1000, got {list(self.t_add_range)}")
        return self

    @property
    def steps_taken(self) -> int:
        return 1

    @property
    def deterministic(self) -> "OneStepSection":
        return OneStepSection()

    @property
    def shared_noise(self) -> bool:
        return self.t_add_range is not None

    def member_levels(self, members: int) -> tuple[float, ...] | None:
        if self.t_add_range is None:
            return None
        low, high = self.t_add_range
        return tuple(float(round(low + (high - low) * k / max(1, members - 1))) for k in range(members))


class GaussianSection(SamplerSection):
    """Gives a one-step policy a likelihood: the group's latents are drawn from a Gaussian with the policy's latents as
    its mean. Ours."""

    likelihood = True

    solver: Literal["gaussian"] = "gaussian"
    std: float = Field(gt=0)

    @property
    def steps_taken(self) -> int:
        return 1

    @property
    def trained_steps(self) -> int:
        return 1

    @property
    def deterministic(self) -> OneStepSection:
        return OneStepSection()


SAMPLERS: dict[str, str] = {
    "dpm2": "rl.config.rollout:ODESection",
    "euler": "rl.config.rollout:ODESection",
    "heun": "rl.config.rollout:ODESection",
    "sde": "rl.config.rollout:StochasticSection",
    "one_step": "rl.config.rollout:OneStepSection",
    "gaussian": "rl.config.rollout:GaussianSection",
}
AnySampler = Annotated[SamplerSection, OpenUnion(SAMPLERS, base=SamplerSection, key="solver", default="dpm2")]


class AutoscaleSection(Section):
    """Rollout workers come and go with the need for them."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)
    idle: float = Field(0.3, gt=0, lt=1)
    """Share of a step without work from which on a role counts as waiting for another."""
    patience: int = Field(3, ge=1)
    """Steps in a row that have to say the same. Ours, like the share: nobody has published either."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"autoscale: expected min <= max, got {self.min} and {self.max}")
        return self


class RolloutSection(Section):
    """One group per LR image; every member has its own noise seed."""

    group_size: int = 12
    """LucidNFT: 12. At least 2: a group of one has no relative advantage."""
    workers: int = Field(1, ge=1)
    """At the start; `isrl scale` changes it while the run goes on."""
    autoscale: AutoscaleSection | None = None
    """None: the number changes only by hand."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    """CPU threads of one worker."""
    micro_batch: int = Field(0, ge=0)
    """Members sampled at once; 0 samples the whole group as one batch."""
    sampler: AnySampler | None = None
    """If unset, the policy's first solver with its defaults."""
    deadline_s: float = Field(600.0, gt=0)
    """Of one group, from the moment at which its worker may begin it; then the worker is replaced."""
    retries: int = Field(2, ge=0)
    """Further attempts after a failure; then the whole group is dropped and reissued."""

    @model_validator(mode="after")
    def _a_group(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, got {self.group_size}: a group of one has no relative advantage "
                "(LucidNFT uses 12)"
            )
        return self

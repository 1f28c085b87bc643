"""From the `[G, R]` scores of each group to one number per member; the formulas are in `rl.advantages`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rl.config.base import Section
from rl.config.open_union import OpenUnion

if TYPE_CHECKING:
    from rl.advantages import AdvantageBatch, Weighed
    from rl.types import F64, SRTask


class AdvantageSection(Section):
    """The base of all aggregations. Your own extends this class; a recipe selects it by `aggregation: module:Class`."""

    needs_attributes: ClassVar[bool] = False
    """Every reward must say whether it measures fidelity or perception."""

    aggregation: str
    std_floor: float = Field(1e-3, ge=0)
    """A reward with a group standard deviation below `std_floor * reward.scale` is ignored in that group (advantage 0),
    so that float noise is not amplified to full weight. The value is ours."""
    eps: float = Field(1e-4, ge=0)

    def advantages(self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]") -> "AdvantageBatch":
        """From scores `[N, G, R]` of the whole batch, over all ranks, and their N tasks."""
        raise NotImplementedError

    def check(self, rewards: "Sequence[Weighed]", *, where: str, has_hr: bool) -> None:
        """Raise ValueError for rewards (the recipe's key `where`) or data that the aggregation cannot read."""
        named = [reward.name for reward in rewards if reward.attribute is not None]
        if named and not self.needs_attributes:
            raise ValueError(
                f"{where} {named}: attribute is not read by advantage.aggregation '{self.aggregation}'; remove it"
            )


class DecoupledSection(AdvantageSection):
    """LucidNFT: per-reward group z-score, weighted sum, batch z-score."""

    aggregation: Literal["decoupled"] = "decoupled"

    def advantages(self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]") -> "AdvantageBatch":
        from rl.advantages import decoupled, weights_and_scales

        return decoupled(scores, *weights_and_scales(rewards), self.std_floor, self.eps)


class ScalarisedSection(AdvantageSection):
    """Weighted sum of the raw rewards, centred in the group, divided by a standard deviation of that sum."""

    aggregation: Literal["scalarised"] = "scalarised"
    std: Literal["batch", "group"] = "batch"
    """`batch`: over all groups (DiffusionNFT; Flow-GRPO's global std). `group`: within each group (DanceGRPO)."""

    def advantages(self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]") -> "AdvantageBatch":
        from rl.advantages import scalarised, scalarised_by_group, weights_and_scales

        formula = scalarised if self.std == "batch" else scalarised_by_group
        return formula(scores, *weights_and_scales(rewards), self.std_floor, self.eps)


class AttributeAwareSection(AdvantageSection):
    """GDPO-SR: in-group min-max, fidelity rewards weighted by the image's smooth share and perceptual ones by its
    detailed share, group z-score."""

    needs_attributes = True

    aggregation: Literal["attribute_aware"] = "attribute_aware"
    detail_share: float | None = Field(None, ge=0, le=1)
    """None: measured on the HR image. 0: fidelity only, 1: perceptual only, 0.5: fixed."""

    def advantages(self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]") -> "AdvantageBatch":
        from rl.advantages import attribute_aware, detail_shares, fidelity_flags, weights_and_scales

        weights, scales = weights_and_scales(rewards)
        rho_d = detail_shares(tasks, self.detail_share)
        return attribute_aware(scores, rho_d, fidelity_flags(rewards), weights, scales, self.std_floor, self.eps)

    def check(self, rewards: "Sequence[Weighed]", *, where: str, has_hr: bool) -> None:
        unnamed = [reward.name for reward in rewards if reward.attribute is None]
        if unnamed:
            raise ValueError(
                f"{where} {unnamed} need attribute: fidelity or perceptual for advantage.aggregation attribute_aware"
            )
        if self.detail_share is None and not has_hr:
            raise ValueError(
                "advantage.aggregation attribute_aware reads each HR image's detailed share, and the data has no HR; "
                "write advantage.detail_share=0.5"
            )
        kinds = {reward.attribute for reward in rewards}
        needed = {"fidelity": self.detail_share != 1.0, "perceptual": self.detail_share != 0.0}
        missing = [kind for kind, is_needed in needed.items() if is_needed and kind not in kinds]
        if missing:
            raise ValueError(f"{where}: advantage.aggregation attribute_aware needs attribute {missing}, got none")


AGGREGATIONS: dict[str, str] = {
    "decoupled": "rl.config.advantage:DecoupledSection",
    "scalarised": "rl.config.advantage:ScalarisedSection",
    "attribute_aware": "rl.config.advantage:AttributeAwareSection",
}
AnyAdvantage = Annotated[
    AdvantageSection, OpenUnion(AGGREGATIONS, base=AdvantageSection, key="aggregation", default="decoupled")
]

"""From the scores of each group to one number per member, or one per member and cell; the formulas are in
`rl.advantages`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from rl.config.base import ReadWith, Section
from rl.config.open_union import OpenUnion

if TYPE_CHECKING:
    from rl.advantages import AdvantageBatch, Weighed
    from rl.types import F64, RewardTable, SRTask


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class AdvantageSection(Section):
    """The base of all aggregations. Your own extends this class; a recipe selects it by `aggregation: module:Class`.

    With `spatial: map` the same formula is applied in every cell of the latent grid, to the rewards' maps:

        A_i[p] = (1 - local_weight) A(scores)_i + local_weight A(maps)_i[p]

    Group statistics and `std_floor` are those of the cell, batch statistics are over all groups, ranks and cells.
    """

    needs_attributes: ClassVar[bool] = False
    """Every reward must say whether it measures fidelity or perception."""

    aggregation: str
    std_floor: float = Field(1e-3, ge=0)
    """A reward with a group standard deviation below `std_floor * reward.scale` is ignored in that group (advantage 0),
    so that float noise is not amplified to full weight. The value is ours."""
    eps: float = Field(1e-4, ge=0)
    spatial: Annotated[Literal["off", "map"], BeforeValidator(_off)] = "off"
    """`map`: one advantage per cell, from the maps of the rewards that have one; the others count with their score in
    every cell. Ours; the derivation is in `rl/DECISIONS.md`."""
    pool: Annotated[int, Field(ge=1), ReadWith("spatial", "map")] = 1
    """Side of a cell in latent positions; 1 is the finest. A cell as large as the latent is the scalar case."""
    local_weight: Annotated[float, Field(gt=0, le=1), ReadWith("spatial", "map")] = 1.0
    """Share of the advantage of the maps; the rest is the advantage of the scores."""

    def advantages(
        self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]", cell_px: int | None = None
    ) -> "AdvantageBatch":
        """From scores `[N, G, R]` of the whole batch, over all ranks, and their N tasks; or from `[N, G, h, w, R]`, in
        cells of `cell_px` output pixels."""
        raise NotImplementedError

    def of_tables(
        self,
        tables: "Sequence[RewardTable]",
        rewards: "Sequence[Weighed]",
        tasks: "Sequence[SRTask]",
        cell_px: int | None,
    ) -> "AdvantageBatch":
        """From the tables of the whole batch; `cell_px` is None with `spatial: off`."""
        from rl.advantages import mixed
        from rl.spatial import scores_of, values_per_cell

        scores = scores_of(tables)
        if cell_px is None:
            return self.advantages(scores, rewards, tasks)
        values = values_per_cell(tables)
        if values.shape[2:4] == (1, 1):
            return self.advantages(scores, rewards, tasks)
        local = self.advantages(values, rewards, tasks, cell_px)
        if self.local_weight == 1.0:
            return local
        return mixed(self.advantages(scores, rewards, tasks), local, self.local_weight)

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

    def advantages(
        self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]", cell_px: int | None = None
    ) -> "AdvantageBatch":
        from rl.advantages import decoupled, weights_and_scales

        return decoupled(scores, *weights_and_scales(rewards), self.std_floor, self.eps)


class ScalarisedSection(AdvantageSection):
    """Weighted sum of the raw rewards, centred in the group, divided by a standard deviation of that sum."""

    aggregation: Literal["scalarised"] = "scalarised"
    std: Literal["batch", "group"] = "batch"
    """`batch`: over all groups (DiffusionNFT; Flow-GRPO's global std). `group`: within each group (DanceGRPO)."""

    def advantages(
        self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]", cell_px: int | None = None
    ) -> "AdvantageBatch":
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

    def advantages(
        self, scores: "F64", rewards: "Sequence[Weighed]", tasks: "Sequence[SRTask]", cell_px: int | None = None
    ) -> "AdvantageBatch":
        from rl.advantages import attribute_aware, detail_shares, fidelity_flags, weights_and_scales

        weights, scales = weights_and_scales(rewards)
        rho_d = detail_shares(tasks, self.detail_share, cell_px if scores.ndim == 5 else None)
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

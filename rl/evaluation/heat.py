"""The sheet of a group's maps: where a member beats the others, reward by reward and in the advantage.

Left out: maps of one cell, which say no more than the scores, and the local scores as numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl.evaluation.sheets import BEST, WORST, Cell, ContactRow, write_contact_sheet
from rl.spatial import grid, per_member
from rl.types import F64, U8, RewardMap, RewardTable, RolloutGroup, SRTask

_MAPS = "_maps"
_ENDS = 3
"""Members shown from each end of the ranking; twelve rows would not fit a screen."""
_NAME = 16
"""Letters of a title for the reward's name, so that the scale behind it is never cut off."""
_GREY = np.array([0.299, 0.587, 0.114])
_DARKEST, _LIGHTEST = 150, 240
"""Grey levels of the image under a heat: pale, or colours would be lost on black."""
_OPAQUE = 0.75
"""Opacity of the full colour; the rest lets the image through."""


@dataclass(frozen=True, eq=False)
class Heat:
    """One column of the sheet; all members are drawn on its one scale."""

    name: str
    values: F64
    """`[G, h, w]`; above 0 is better than the group."""
    captions: tuple[str, ...]
    """One per member."""

    @property
    def end(self) -> float:
        """Where the colour is full: the largest |value| of any member, shown or not."""
        return float(np.abs(self.values).max())

    @property
    def title(self) -> str:
        name = self.name if len(self.name) <= _NAME else self.name[: _NAME - 2] + ".."
        return f"{name}  ±{self.end:.2g}"


def maps_path(sheet: Path) -> Path:
    """Beside a sample sheet."""
    return sheet.with_name(f"{sheet.stem}{_MAPS}{sheet.suffix}")


def is_maps(sheet: Path) -> bool:
    return sheet.stem.endswith(_MAPS)


def write_maps_sheet(
    sheet: Path, task: SRTask, group: RolloutGroup, table: RewardTable, advantages: F64, cell_px: int | None
) -> Path | None:
    """The best and the worst members by mean advantage, best first: the image, a heat per reward with a map, and one
    of the advantages `[G, h, w]`, whose cells have `cell_px` output pixels.

    Returns the path, beside the sample sheet `sheet`; None, and no file, for advantages `[G]`.
    """
    if cell_px is None or advantages.ndim == 1:
        return None
    columns = heats(table, advantages)
    ranking = np.argsort(-per_member(advantages), kind="stable")
    ranks = range(len(ranking))
    shown = ranks if len(ranks) <= 2 * _ENDS else (*ranks[:_ENDS], *ranks[-_ENDS:])
    rows = []
    for rank in shown:
        member = int(ranking[rank])
        image = group.images[member]
        drawn = (Cell(heated(image, heat.values[member], heat.end, cell_px), heat.captions[member]) for heat in columns)
        rows.append(ContactRow("", (Cell(image, f"member {member}\nrank {rank + 1} of {len(ranks)}"), *drawn)))
    path = maps_path(sheet)
    write_contact_sheet(path, ("member", *(heat.title for heat in columns)), rows, _heading(task, group, table))
    return path


def heats(table: RewardTable, advantages: F64) -> tuple[Heat, ...]:
    """Each reward's local score minus the group's mean in the cell, then the advantages `[G, h, w]`."""
    columns = []
    for k, (name, reward_map) in enumerate(_named(table)):
        if reward_map is not None:
            local, scores = reward_map.values(), table.scores[:, k]
            captions = tuple(
                f"score {score:.5g}\n{score - scores.mean():+.3g} from the group's mean" for score in scores
            )
            columns.append(Heat(name, local - local.mean(axis=0), captions))
    captions = tuple(f"mean {one.mean():+.3f}\n{one.min():+.2f} to {one.max():+.2f}" for one in advantages)
    return (*columns, Heat("advantage", advantages, captions))


def heated(image: U8, values: F64, end: float, cell_px: int) -> U8:
    """The image `[3, H, W]` in pale grey under blocks of `cell_px` pixels, blue where `values` `[h, w]` are above 0 and
    orange where they are below.

        opacity = _OPAQUE min( |value| / end, 1 )       0 leaves the grey image alone

    Raises:
        ValueError: the cells do not cover the image.
    """
    height, width = image.shape[1:]
    if values.shape != grid((height, width), cell_px):
        raise ValueError(
            f"heat: expected {grid((height, width), cell_px)} cells of {cell_px} pixels over {height} x {width}, "
            f"got {values.shape}"
        )
    grey = _DARKEST + (_LIGHTEST - _DARKEST) / 255 * np.tensordot(_GREY, image, axes=1)
    share = np.clip(values / (end or 1.0), -1.0, 1.0)
    share = share.repeat(cell_px, axis=0).repeat(cell_px, axis=1)[:height, :width]
    colour = np.where(share > 0, _rgb(BEST), _rgb(WORST))
    opacity = _OPAQUE * np.abs(share)
    mixed: U8 = ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)
    return mixed


def _named(table: RewardTable) -> Iterator[tuple[str, RewardMap | None]]:
    """Rewards with their maps; a group may have none in a run with maps."""
    return zip(table.names, table.maps or (None,) * len(table.names), strict=True)


def _heading(task: SRTask, group: RolloutGroup, table: RewardTable) -> tuple[str, ...]:
    """Short lines: a sheet of one reward has room for about 80 letters."""
    members = len(group.member_seeds)
    shown = f"the best {_ENDS} and the worst {_ENDS} of {members}" if members > 2 * _ENDS else f"all {members}"
    everywhere = [name for name, one in _named(table) if one is None]
    return (
        f"ordinal {task.ordinal}   {task.lr_id}   x{task.scale}",
        f"policy version {group.policy_version}   {shown} members by mean advantage",
        "blue: better there than the group's mean, orange: worse, grey: the same",
        "full colour: the group's largest difference, given beside the name in the reward's unit",
        *([f"without a map, so its score counts in every cell: {', '.join(everywhere)}"] if everywhere else []),
    )


def _rgb(colour: str) -> F64:
    """`[3, 1, 1]` of `#rrggbb`."""
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float64)[:, None, None]

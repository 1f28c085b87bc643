"""Sheets of images for visual inspection: one group with its scores, and rows of methods side by side.

Left out: colour management and pagination; a sheet is one PNG, with images enlarged by a whole factor or, above 512
pixels, shrunk.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rl.types import F64, U8, RewardTable, RolloutGroup, SRTask

SAMPLES_DIR = "samples"
BEFORE_AFTER_FILE = "before_after.png"

_SMALLEST, _LARGEST = 256, 512
_GAP, _BORDER, _LINE, _TEXT, _HEADING = 12, 3, 20, 15, 19
_PAPER, _INK, _FAINT = "#ffffff", "#1a1a1a", "#d8d8d8"
BEST, WORST = "#1f6fb4", "#d9730d"


@dataclass(frozen=True, eq=False)
class SampleRow:
    """One member of a group with its scores, advantage and seed."""

    ordinal: int
    lr_id: str
    policy_version: int
    member: int
    seed: int
    scores: Mapping[str, float]
    """Raw, in each metric's own unit."""
    advantage: float
    r: float | None
    """The reward weight, where the objective has one."""
    lr: U8
    image: U8


@dataclass(frozen=True, eq=False)
class Cell:
    """One image of a contact sheet; None draws an empty cell."""

    image: U8 | None
    caption: str = ""
    """Lines under the image."""


@dataclass(frozen=True, eq=False)
class ContactRow:
    """One line of a contact sheet: the same crop by several methods."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Tile:
    picture: Image.Image
    lines: tuple[str, ...]
    border: str


def sheet_path(run_dir: Path, step: int, ordinal: int) -> Path:
    return run_dir / SAMPLES_DIR / f"step_{step:06d}_ordinal_{ordinal:06d}.png"


def bicubic_upscale(lr: U8, scale: int) -> U8:
    """`[3, h, w]` -> `[3, h scale, w scale]`, the baseline of every sheet."""
    picture = _picture(lr)
    larger = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(larger).transpose(2, 0, 1))


def sample_rows(
    task: SRTask, group: RolloutGroup, table: RewardTable, advantages: F64, r: F64 | None
) -> tuple[SampleRow, ...]:
    """The members of a group; advantages and r are `[G]`, r None where the objective has none."""
    members = len(group.member_seeds)
    weights = advantages if r is None else r
    shapes = (group.images.shape[0], table.scores.shape[0], *advantages.shape, *weights.shape)
    if shapes != (members,) * 4 or not task.ordinal == group.ordinal == table.ordinal:
        raise ValueError(
            f"sample sheet: expected {members} images, scores, advantages and r of ordinal {task.ordinal}, "
            f"got {shapes} of ordinals {group.ordinal} (group) and {table.ordinal} (table)"
        )
    return tuple(
        SampleRow(
            ordinal=task.ordinal,
            lr_id=task.lr_id,
            policy_version=group.policy_version,
            member=member,
            seed=group.member_seeds[member],
            scores=dict(zip(table.names, map(float, table.scores[member]), strict=True)),
            advantage=float(advantages[member]),
            r=None if r is None else float(r[member]),
            lr=task.lr,
            image=group.images[member],
        )
        for member in range(members)
    )


def write_sample_sheet(
    path: Path, task: SRTask, group: RolloutGroup, table: RewardTable, advantages: F64, r: F64 | None
) -> tuple[SampleRow, ...]:
    """LR, HR if there is one, then every member with its scores; the same facts as JSON next to the PNG."""
    rows = sample_rows(task, group, table, advantages, r)
    box = _box(group.images.shape[3], group.images.shape[2])
    tiles = [_Tile(_fitted(task.lr, box), ("LR", f"{task.lr.shape[2]} x {task.lr.shape[1]}, nearest"), _FAINT)]
    if task.hr is not None:
        tiles.append(_Tile(_fitted(task.hr, box), ("HR", f"{task.hr.shape[2]} x {task.hr.shape[1]}"), _FAINT))
    best, worst = int(advantages.argmax()), int(advantages.argmin())
    for row in rows:
        mark = " (best)" if row.member == best else " (worst)" if row.member == worst else ""
        border = BEST if row.member == best else WORST if row.member == worst else _FAINT
        tiles.append(_Tile(_fitted(row.image, box), _member_lines(row, mark), border))
    heading = (
        f"ordinal {task.ordinal}   {task.lr_id}   x{task.scale}",
        f"policy version {group.policy_version}   {len(rows)} members   advantage and r as trained, scores raw",
    )
    columns = min(6, max(3, int(np.ceil(np.sqrt(len(tiles))))))
    lines = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    _save(_compose(heading, (), [("", line) for line in lines]), path)
    path.with_suffix(".json").write_text(json.dumps(_facts(path, task, group, rows), indent=1), encoding="utf-8")
    return rows


def write_contact_sheet(
    path: Path, columns: Sequence[str], rows: Sequence[ContactRow], heading: tuple[str, ...] = ()
) -> None:
    """Rows of crops under shared column titles (LR, bicubic, before, after, HR, ...), below the lines of `heading`."""
    for row in rows:
        if len(row.cells) != len(columns):
            raise ValueError(f"contact sheet row '{row.label}': expected {len(columns)} cells, got {len(row.cells)}")
    lines = []
    for row in rows:
        sizes = [(cell.image.shape[2], cell.image.shape[1]) for cell in row.cells if cell.image is not None]
        if not sizes:
            raise ValueError(f"contact sheet row '{row.label}': expected at least one image, got none")
        box = _box(*max(sizes))
        lines.append((row.label, [_cell_tile(cell, box) for cell in row.cells]))
    _save(_compose(heading, tuple(columns), lines), path)


def _member_lines(row: SampleRow, mark: str) -> tuple[str, ...]:
    scores = tuple(f"{name} {score:.5g}" for name, score in row.scores.items())
    return (
        f"member {row.member}{mark}",
        f"advantage {row.advantage:+.3f}" + ("" if row.r is None else f"   r {row.r:.3f}"),
        *scores,
        f"seed {row.seed}",
    )


def _facts(path: Path, task: SRTask, group: RolloutGroup, rows: Sequence[SampleRow]) -> dict[str, object]:
    return {
        "sheet": path.name,
        "ordinal": task.ordinal,
        "lr_id": task.lr_id,
        "scale": task.scale,
        "policy_version": group.policy_version,
        "digest": group.digest,
        "members": [
            {"member": row.member, "seed": row.seed, "advantage": row.advantage, "r": row.r, "scores": dict(row.scores)}
            for row in rows
        ],
    }


def _cell_tile(cell: Cell, box: tuple[int, int]) -> _Tile:
    captions = tuple(line for line in cell.caption.split("\n") if line)
    if cell.image is None:
        return _Tile(Image.new("RGB", box, _FAINT), captions or ("none",), _FAINT)
    return _Tile(_fitted(cell.image, box), captions, _FAINT)


def _picture(image: U8) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _box(width: int, height: int) -> tuple[int, int]:
    """Displayed size: small images enlarged by a whole factor, large ones shrunk; labels fit and sheets stay small."""
    side = max(width, height)
    if side < _SMALLEST:
        factor = -(-_SMALLEST // side)
        return width * factor, height * factor
    shrink = min(1.0, _LARGEST / side)
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _fitted(image: U8, box: tuple[int, int]) -> Image.Image:
    picture = _picture(image)
    grows = picture.width <= box[0]
    return picture.resize(box, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


def _compose(
    heading: tuple[str, ...], columns: tuple[str, ...], lines: Sequence[tuple[str, Sequence[_Tile]]]
) -> Image.Image:
    """Heading, column titles, then the labelled lines of tiles."""
    cell = max(tile.picture.width for _, tiles in lines for tile in tiles) + 2 * _BORDER
    width = max(len(tiles) for _, tiles in lines) * (cell + _GAP) + _GAP
    heights = [_line_height(label, tiles) for label, tiles in lines]
    top = _GAP + len(heading) * (_HEADING + 6) + (_GAP if heading else 0) + (_HEADING + 10 if columns else 0)
    sheet = Image.new("RGB", (width, top + sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large = ImageFont.load_default(_HEADING)
    y = _GAP
    for text in heading:
        _write(draw, (_GAP, y), text, large, width - 2 * _GAP)
        y += _HEADING + 6
    for index, title in enumerate(columns):
        _write(draw, (_GAP + index * (cell + _GAP), top - _HEADING - 10), title, large, cell)
    y = top
    for (label, tiles), height in zip(lines, heights, strict=True):
        _draw_line(sheet, draw, y, label, tiles, cell)
        y += height
    return sheet


def _line_height(label: str, tiles: Sequence[_Tile]) -> int:
    tallest = max(tile.picture.height + 2 * _BORDER + len(tile.lines) * _LINE for tile in tiles)
    return tallest + (_LINE + 4 if label else 0) + _GAP + 6


def _draw_line(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, label: str, tiles: Sequence[_Tile], cell: int
) -> None:
    font = ImageFont.load_default(_TEXT)
    if label:
        _write(draw, (_GAP, y), label, font, sheet.width - 2 * _GAP)
        y += _LINE + 4
    for index, tile in enumerate(tiles):
        x = _GAP + index * (cell + _GAP)
        framed = (x, y, x + tile.picture.width + 2 * _BORDER - 1, y + tile.picture.height + 2 * _BORDER - 1)
        draw.rectangle(framed, fill=tile.border)
        sheet.paste(tile.picture, (x + _BORDER, y + _BORDER))
        for number, text in enumerate(tile.lines):
            _write(draw, (x, framed[3] + 4 + number * _LINE), text, font, cell)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    room: int,
) -> None:
    """Write text, truncated with '..' where it does not fit."""
    shown = text
    while len(shown) > 3 and draw.textlength(shown, font=font) > room:
        shown = shown[:-3] + ".."
    draw.text(at, shown, fill=_INK, font=font)


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

"""Heats: colours of single cells, one scale per group, which members a sheet shows, refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.evaluation.heat import Heat, heated, heats, maps_path, write_maps_sheet
from rl.types import F64, RewardMap, RewardTable, RolloutGroup, SRTask

CELL_PX = 16
SHOWN_PX, LEFT, COLUMN = 256, 12 + 3, 256 + 2 * 3 + 12
"""Layout: 32 pixels are shown 8 times as large, in borders of 3, with gaps of 12."""
MEAN_ADVANTAGES = np.array([0.0, 3.0, -2.0, 1.0, -1.0, 2.0, 0.5, -3.0])
"""Members 1, 5 and 3 are the best, 4, 2 and 7 the worst."""


def member_colour(member: int) -> tuple[int, int, int]:
    return (20 * member, 255 - 20 * member, 7)


def example(members: int, mapless: int = 0) -> tuple[SRTask, RolloutGroup, RewardTable, F64]:
    """Images of one colour per member, 2 x 2 cells, two rewards with a map and `mapless` without."""
    colours = np.array([member_colour(member) for member in range(members)], np.uint8)
    images = np.broadcast_to(colours[:, :, None, None], (members, 3, 32, 32)).copy()
    task = SRTask(ordinal=7, lr_id="cat", lr=np.zeros((3, 8, 8), np.uint8), hr=None, scale=4, seed=0)
    latents = np.zeros((members, 4, 2, 2), np.float32)
    group = RolloutGroup(7, "cat", 5, "abc", tuple(range(members)), latents, images)
    rng = np.random.default_rng(0)
    maps = [RewardMap.of(rng.normal(size=(members, 2, 2))) for _ in range(2)] + [None] * mapless
    names = tuple(f"reward {k}" for k in range(len(maps)))
    table = RewardTable(7, names, rng.normal(size=(members, len(maps))), (0.1,) * len(maps), tuple(maps))
    local = np.array([[0.5, -0.5], [-1.0, 1.0]])
    return task, group, table, MEAN_ADVANTAGES[:members, None, None] + local


def test_a_member_better_in_one_cell_is_blue_there_and_grey_elsewhere() -> None:
    """6 x 10 pixels in cells of 4: the cells at the right and bottom edge are smaller."""
    image = np.random.default_rng(0).integers(0, 256, size=(3, 6, 10), dtype=np.uint8)
    for value, strong, weak in ((1.0, 2, 0), (-1.0, 0, 2)):
        values = np.zeros((2, 3))
        values[1, 2] = value
        drawn = heated(image, values, 1.0, 4).astype(int)
        cell = np.zeros((6, 10), bool)
        cell[4:, 8:] = True
        assert (drawn[strong] - drawn[weak])[cell].min() > 50
        assert np.ptp(drawn[:, ~cell], axis=0).max() == 0


def test_half_the_difference_is_half_the_colour_and_the_image_shines_through() -> None:
    """Three quarters of the colour at the end, on grey levels 150 (black) to 240 (white)."""
    image = np.zeros((3, 2, 3), np.uint8)
    image[:, 1] = 255
    drawn = heated(image, np.array([[1.0, 0.5, 2.0]] * 2), 1.0, 1)
    blue = np.array([0x1F, 0x6F, 0xB4])
    for row, grey in ((0, 150), (1, 240)):
        np.testing.assert_allclose(drawn[:, row, 0], 0.25 * grey + 0.75 * blue, atol=0.51)
        np.testing.assert_allclose(drawn[:, row, 1], 0.625 * grey + 0.375 * blue, atol=0.51)
    assert (drawn[:, :, 2] == drawn[:, :, 0]).all(), "beyond the end the colour stays full"


def test_equal_members_are_grey() -> None:
    heat = Heat("musiq", np.zeros((2, 1, 1)), ("", ""))
    assert heat.title == "musiq  ±0"
    assert (heated(np.zeros((3, 4, 4), np.uint8), heat.values[0], heat.end, 4) == 150).all()


def test_differences_are_to_the_group_in_the_cell_and_share_one_scale() -> None:
    """30 and 31 dB in one cell, 20 and 23 in the other: the reward's scale ends at 1.5, the advantage's at 4."""
    local = np.array([[[30.0, 20.0]], [[31.0, 23.0]]])
    table = RewardTable(
        0, ("musiq", "lr_consistency"), np.array([[60.0, 25.0], [61.0, 27.0]]), (0.1, 0.1), (None, RewardMap.of(local))
    )
    advantages = np.array([[[-1.0, 4.0]], [[1.0, 2.0]]])
    reward, advantage = heats(table, advantages)
    np.testing.assert_allclose(reward.values, [[[-0.5, -1.5]], [[0.5, 1.5]]], atol=2e-3)
    assert (reward.title, advantage.title) == ("lr_consistency  ±1.5", "advantage  ±4")
    assert reward.captions[1] == "score 27\n+1 from the group's mean"
    assert advantage.captions[0] == "mean +1.500\n-1.00 to +4.00"


def test_long_names_leave_room_for_the_scale() -> None:
    assert Heat("a" * 40, np.array([[[-0.25]]]), ("",)).title == "a" * 14 + "..  ±0.25"


@pytest.mark.parametrize(("members", "shown"), [(8, [1, 5, 3, 4, 2, 7]), (4, [1, 3, 0, 2])])
def test_a_sheet_shows_both_ends_of_the_ranking_best_first(tmp_path: Path, members: int, shown: list[int]) -> None:
    task, group, table, advantages = example(members)
    path = write_maps_sheet(tmp_path / "s.png", task, group, table, advantages, CELL_PX)
    assert path == tmp_path / "s_maps.png"
    sheet = np.asarray(Image.open(path))
    first_column = [tuple(map(int, pixel)) for pixel in sheet[:, LEFT + 200]]
    found = [member for member in range(members) if first_column.count(member_colour(member)) == SHOWN_PX]
    assert sorted(found, key=lambda member: first_column.index(member_colour(member))) == shown
    assert sheet.shape[1] == 12 + 4 * COLUMN, "the member, two rewards and the advantage"
    for member in shown:
        top = first_column.index(member_colour(member))
        for column, values in enumerate((*(one.values() for one in table.maps if one), advantages), start=1):
            values = values - values.mean(axis=0) if column < 3 else values
            drawn = heated(group.images[member], values[member], np.abs(values).max(), CELL_PX)
            left = LEFT + column * COLUMN
            assert (sheet[top : top + SHOWN_PX : 8, left : left + SHOWN_PX : 8] == drawn.transpose(1, 2, 0)).all()


def test_a_reward_without_a_map_takes_a_line_and_no_column(tmp_path: Path) -> None:
    sizes = []
    for mapless in (0, 1):
        path = write_maps_sheet(tmp_path / f"{mapless}.png", *example(4, mapless), CELL_PX)
        assert path is not None
        sizes.append(Image.open(path).size)
    assert sizes[1] == (sizes[0][0], sizes[0][1] + 25)


def test_a_group_without_maps_in_a_run_with_maps_shows_its_advantages_alone() -> None:
    _, _, table, advantages = example(4)
    bare = RewardTable(7, table.names, table.scores, table.seconds)
    assert [heat.name for heat in heats(bare, advantages)] == ["advantage"]


def test_no_advantages_per_cell_no_file(tmp_path: Path) -> None:
    task, group, table, advantages = example(3)
    assert write_maps_sheet(tmp_path / "s.png", task, group, table, advantages[:, 0, 0], CELL_PX) is None
    assert list(tmp_path.iterdir()) == []


def test_cells_of_another_grid_are_refused(tmp_path: Path) -> None:
    expected = r"expected \(4, 4\) cells of 8 pixels over 32 x 32, got \(2, 2\)"
    with pytest.raises(ValueError, match=expected):
        write_maps_sheet(tmp_path / "s.png", *example(3), 8)


def test_maps_lie_beside_their_sheet() -> None:
    sheet = Path("run/samples/step_000012_ordinal_000003.png")
    assert maps_path(sheet) == Path("run/samples/step_000012_ordinal_000003_maps.png")

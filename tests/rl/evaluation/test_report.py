"""The report over a run directory made by hand: what it finds, and what it says of missing parts."""

from pathlib import Path

import numpy as np
import pytest

from rl import jsonl
from rl.evaluation.figures import moving_average, series, smoothing_width
from rl.evaluation.heat import maps_path
from rl.evaluation.records import EvalRecord, append_eval
from rl.evaluation.report import write_report
from rl.metrics import Key, Metrics


def run_dir(path: Path, steps: int) -> Path:
    rng = np.random.default_rng(0)
    records = [
        Metrics(
            step,
            10.0 * step,
            {
                Key.REWARD_MEAN.of("musiq"): 0.6 + 0.001 * step + 0.01 * rng.normal(),
                Key.TIME_STEP: 8.0,
                Key.IDLE_LEARNER: 0.5,
                Key.PUBLISH_TOTAL: 0.2,
                Key.PUBLISH_BYTES: 4e6,
                Key.POLICY_VERSION: float(step),
                Key.GROUP_DROPPED: float(step == 3),
                Key.PERF_IMAGES: 3.0,
                **({Key.EVAL_MEAN.of("musiq"): 0.6} if step % 10 == 0 else {}),
            },
        )
        for step in range(1, steps + 1)
    ]
    jsonl.append(path / "metrics.jsonl", [record.to_json() for record in records])
    return path


def test_full_report(tmp_path: Path) -> None:
    run_dir(tmp_path, 40)
    for phase, gain in (("start", 0.0), ("end", 1.0)):
        append_eval(
            tmp_path / "eval.jsonl",
            [
                EvalRecord(
                    phase, int(gain), f"p{i}", f"p{i}@0", 0, {"musiq": 60.0 + i + gain, "lr": 0.9 - i % 2 * gain}
                )
                for i in range(4)
            ],
        )
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_000010.png").write_bytes(b"")
    (tmp_path / "before_after.png").write_bytes(b"")
    text = write_report(tmp_path).read_text()
    assert "| newest policy version | 40 |" in text
    assert "| groups dropped | 1 |" in text
    assert "| musiq | 61.5 | 62.5 | **+1** | +1 to +1 | 100% |" in text
    assert "| lr | 0.9 | 0.4 | -0.5 | -1 to +0 | 0% |" in text
    assert "fewer than 10 photographs" in text
    assert "| `time/step_s` | 8 s | 8 to 8 |" in text
    assert "seed: 3" in text
    assert "(samples/step_000010.png)" in text and "(before_after.png)" in text
    for figure in ("rewards", "time", "push"):
        assert f"(report/{figure}.png)" in text
        assert (tmp_path / "report" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_the_ceiling_of_best_of_n_stands_beside_before_and_after(tmp_path: Path) -> None:
    """Two samples a crop, 60 and 62 at the start: their mean is 61, the better one 62, and training gained 3."""
    run_dir(tmp_path, 2)
    for phase, gain in (("start", 0.0), ("end", 3.0)):
        scores = [(f"p{i}", seed, 60.0 + 2 * seed + gain) for i in range(2) for seed in (0, 1)]
        records = [EvalRecord(phase, int(gain), photo, f"{photo}@0", seed, {"musiq": s}) for photo, seed, s in scores]
        append_eval(tmp_path / "eval.jsonl", records)
    text = write_report(tmp_path).read_text()
    assert "| reward | before | best of 2 at the start | after | difference | 95 % interval | pairs improved |" in text
    assert "| musiq | 61 | 62 | 64 | **+3** | +3 to +3 | 100% |" in text
    assert "as `isrl restore --best-of 2` with that reward does" in text


def test_evaluations_that_cannot_be_compared_leave_a_reason(tmp_path: Path) -> None:
    run_dir(tmp_path, 2)
    for phase, crop in (("start", "p@0"), ("end", "p@1")):
        append_eval(tmp_path / "eval.jsonl", [EvalRecord(phase, 0, "p", crop, 0, {"musiq": 1.0})])
    text = write_report(tmp_path).read_text()
    assert "No table: evaluation: expected the same (crop, seed) pairs at start and end, got 1 and 1" in text


def test_run_of_one_step_says_what_is_missing(tmp_path: Path) -> None:
    jsonl.append(tmp_path / "metrics.jsonl", [Metrics(1, 2.0, {Key.LOSS_KL: 1.0}).to_json()])
    text = write_report(tmp_path).read_text()
    for missing in (
        "lacks records of phase",
        "no reward was logged",
        "no times",
        "no push",
        "No config.yaml",
        "No sheets",
    ):
        assert missing in text


def test_only_the_newest_sheet_shows_its_maps(tmp_path: Path) -> None:
    """Sheets are listed, maps are not; maps of older sheets are found beside them."""
    run_dir(tmp_path, 2)
    (tmp_path / "samples").mkdir()
    older, newest = (tmp_path / "samples" / f"step_{step:06d}_ordinal_000000.png" for step in (1, 2))
    for sheet in (older, newest):
        sheet.touch()
    maps_path(older).touch()
    assert "cell by cell" not in write_report(tmp_path).read_text()
    maps_path(newest).touch()
    text = write_report(tmp_path).read_text()
    listed = (
        f"- [{older.stem}](samples/{older.name})\n- [{newest.stem}](samples/{newest.name})\n\nThe newest sheet's group"
    )
    assert listed in text and "blue is where a member beats the group's mean" in text
    assert "![maps of the newest sheet](samples/step_000002_ordinal_000000_maps.png)" in text
    assert maps_path(older).name not in text


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="at least one step"):
        write_report(tmp_path)


def test_moving_average_by_hand() -> None:
    # ends over what exists: (0+3)/2, (0+3+6)/3, (3+6+3)/3, (6+3)/2
    np.testing.assert_allclose(moving_average(np.array([0.0, 3.0, 6.0, 3.0]), 3), [1.5, 3.0, 4.0, 4.5])
    assert [smoothing_width(n) for n in (1, 30, 60, 300)] == [1, 3, 5, 21]


def test_series_skips_steps_without_the_key() -> None:
    records = [Metrics(1, 0.0, {}), Metrics(2, 0.0, {Key.LOSS_KL: 5.0})]
    steps, values = series(records, Key.LOSS_KL)
    assert (steps.tolist(), values.tolist()) == ([2.0], [5.0])

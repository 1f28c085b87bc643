"""Seeds name what they are for, on every machine."""

from rl.seeding import derive_seed, member_seeds


def test_stored_values() -> None:
    """blake2b of 'parts/joined', little endian, 63 bits: stored, so that old runs can be repeated."""
    assert derive_seed(0, "member", 0, 0) == 1270033073009083275
    assert derive_seed("eval", "coffee", 128, 0) == 4529713778090448386


def test_member_seeds_depend_on_run_ordinal_and_member_only() -> None:
    """A larger group keeps the seeds of a smaller one, and 40 000 seeds of a run are all different."""
    assert member_seeds(3, 17, 12)[:4] == member_seeds(3, 17, 4)
    seeds = [seed for run in range(2) for ordinal in range(2000) for seed in member_seeds(run, ordinal, 10)]
    assert len(set(seeds)) == 40_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parts_do_not_run_into_each_other() -> None:
    """(1, 23) and (12, 3) are different things; so are the same numbers under another word."""
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(0, "train", 5) != derive_seed(0, "member", 5)

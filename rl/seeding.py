"""Seeds that depend only on what they are for, never on which process draws them or when."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine: blake2b of their text."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def member_seeds(run_seed: int, ordinal: int, group_size: int) -> tuple[int, ...]:
    """Noise seeds of the members of group `ordinal`."""
    return tuple(derive_seed(run_seed, "member", ordinal, member) for member in range(group_size))

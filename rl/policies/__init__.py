"""Generators, one folder each: `section.py` has the recipe's keys and the policy's facts, `policy.py` the model.

To add one: its folder, one line in `rl.config.policy.POLICIES`, a recipe, tests. A user's own policy may live in any
module.
"""

from typing import TYPE_CHECKING

from rl.config.open_union import load
from rl.config.policy import PolicySection

if TYPE_CHECKING:
    from rl.policies.base import Policy


def load_policy(section: PolicySection) -> "Policy":
    """The policy of a section, without adapters.

    Raises:
        ValueError: its modules are not those in the section's `trained`.
    """
    policy: Policy = load(section.builder).from_folder(section.folder(), section)
    if set(policy.modules) != set(section.trained):
        raise ValueError(
            f"{section.builder}: {type(section).__name__}.trained says {list(section.trained)}, the policy's modules "
            f"are {list(policy.modules)}"
        )
    return policy

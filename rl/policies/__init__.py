"""Generators by name. Adding one: a file or folder with its class, one line here, one row in the tests."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rl.config.policy import PolicyConfig, PolicyType
from rl.policies.folders import policy_folder

if TYPE_CHECKING:
    from rl.policies.base import Policy


def load_policy(config: PolicyConfig) -> "Policy":
    """The policy of a configuration, without adapters."""
    return POLICIES[config.type](config)


def _flux2sr(config: PolicyConfig) -> "Policy":
    from rl.policies.flux2sr.policy import Flux2SR

    return Flux2SR.from_folder(policy_folder(config), config)


def _naosd(config: PolicyConfig) -> "Policy":
    from rl.policies.naosd.policy import NAOSD

    return NAOSD.from_folder(policy_folder(config), config)


POLICIES: dict[PolicyType, "Callable[[PolicyConfig], Policy]"] = {"flux2sr": _flux2sr, "naosd": _naosd}

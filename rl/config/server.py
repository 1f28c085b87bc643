"""Placement, retries and packages of a pool of reward or tagger servers."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rl.config.base import Section


class ServerSection(Section):
    """What all server sections share."""

    builder: ClassVar[str]
    """`module:Class` of what a replica serves, imported in the replica's process only."""

    type: str
    replicas: int = Field(1, ge=1)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    retries: int = Field(2, ge=0)
    """Further attempts after a failure; then the whole group is dropped and reissued."""
    deadline_s: float = Field(300.0, gt=0)
    """Of one call, from the moment at which the replica may begin it; then the replica is replaced."""
    slots: int = Field(1, ge=1)
    """Calls that one replica answers at the same time; more than 1 for a scorer that waits for another machine."""
    runtime_env: dict[str, object] | None = None
    """Ray `runtime_env` of the server, for code with packages that conflict with ours."""

    @property
    def label(self) -> str:
        """The server's name in error messages."""
        raise NotImplementedError


class DeviceSection(ServerSection):
    """A server with a model that isrl puts on a device; a user's file chooses its own device."""

    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _device_matches_gpus(self) -> Self:
        if self.device == "cuda" and self.gpus == 0:
            raise ValueError(f"{self.label}: device 'cuda' needs gpus above 0, got 0; write gpus: 0.25")
        if self.device == "cpu" and self.gpus > 0:
            raise ValueError(f"{self.label}: gpus {self.gpus:g} needs device 'cuda', got 'cpu'; write device: cuda")
        return self

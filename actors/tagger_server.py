"""A TaggerServer as a Ray actor."""

from rl.config.tagger import TaggerConfig
from rl.types import ImageTags, TagRequest


class TaggerActor:
    """One replica of one section's tagger."""

    def __init__(self, where: str, config: TaggerConfig) -> None:
        from rewards.tagger import TaggerServer

        self.server = TaggerServer(where, config, threads=config.threads)

    def ready(self) -> str:
        """Answers when the model is loaded."""
        return self.server.name

    def tag(self, *requests: TagRequest) -> list[ImageTags]:
        """One answer per image, in their order."""
        return self.server.tag(requests)

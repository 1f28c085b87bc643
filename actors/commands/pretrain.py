"""`isrl pretrain`: an embedded preset from photographs."""

from actors.commands import Overrides, Recipe


def pretrain(recipe: Recipe, overrides: Overrides = None) -> None:
    """Make a policy by supervised training and score it on held-out photographs: Flux2SR (VAE, then flow matching) or
    NAOSD (a one-step student of a multi-step model). An interrupted NAOSD student resumes when the same command is
    given again."""
    from learner.pretraining import pretrain as make
    from rl.config.load import load_pretrain_config

    make(load_pretrain_config(recipe, overrides or []), " ".join([str(recipe), *(overrides or [])]))

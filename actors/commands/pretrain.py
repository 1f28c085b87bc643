"""`isrl pretrain`: supervised training of a preset or of NAOSD on photographs."""

from actors.commands import Overrides, Recipe


def pretrain(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train a policy with supervision and score it on held-out photographs: Flux2SR (VAE, then flow matching) or NAOSD
    (a one-step student of a multi-step model). An interrupted NAOSD student resumes when the same command is run
    again."""
    from learner.pretraining import pretrain as make
    from rl.config.load import load_pretrain_config

    make(load_pretrain_config(recipe, overrides or []), " ".join([str(recipe), *(overrides or [])]))

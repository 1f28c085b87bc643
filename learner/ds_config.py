"""The DeepSpeed configuration of one learner rank, derived from ours and written nowhere else."""

from typing import Any

from rl.config.run import RunConfig


def ds_config(config: RunConfig) -> dict[str, Any]:
    """One micro-batch is one (group, timestep): G samples, so DeepSpeed's accumulation counts micro-batches."""
    learner = config.learner
    return {
        "train_micro_batch_size_per_gpu": config.rollout.group_size,
        "gradient_accumulation_steps": config.micro_batches_per_update,
        "gradient_clipping": learner.optimizer.grad_clip,
        "zero_optimization": {"stage": learner.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }

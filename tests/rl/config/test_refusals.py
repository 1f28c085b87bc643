"""Every impossible combination fails at config time, in under a second, with what to write instead."""

import subprocess
import sys
from pathlib import Path

import pytest

from rl.config.load import ConfigError, load_config

ROOT = Path(__file__).parents[3]

ONE_STEP = ("policy.type=naosd", "objective.type=gdpo", "rollout.sampler.solver=one_step")

REFUSALS: dict[str, tuple[list[str], str]] = {
    "group of one": (
        ["rollout.group_size=1"],
        "rollout: group_size must be at least 2, got 1: a group of one has no relative advantage (LucidNFT uses 12)",
    ),
    "size of the backbone": (
        ["data.crop=100"],
        "data.crop must be divisible by 16 for policy 'flux2sr', got 100; write 96 or 112",
    ),
    "size of the evaluation": (
        ["eval.data={path: [x], crop: 72}"],
        "eval.data.crop must be divisible by 16 for policy 'flux2sr', got 72; write 64 or 80",
    ),
    "crop and scale": (["data.scale=3"], "data.crop must be divisible by data.scale 3, got 128"),
    "two scales": (["eval.data={path: [x], scale: 2}"], "eval.data.scale must equal data.scale 4, got 2"),
    "groups over ranks": (
        ["train.groups_per_step=3", "learner.ranks=2"],
        "train.groups_per_step must be divisible by learner.ranks 2, got 3: a group is never split over ranks",
    ),
    "updates over slots": (
        ["learner.updates_per_batch=5"],
        "learner.updates_per_batch must divide the 9 slots of a group, so that every update sees every group; got 5",
    ),
    "updates that would miss a group": (
        ["learner.updates_per_batch=12", "rollout.sampler.steps=10"],
        "learner.updates_per_batch must divide the 9 slots of a group, so that every update sees every group; got 12",
    ),
    "updates over samples": (
        [
            "objective={type: grpo, order: samples}",
            "rollout={group_size: 12, micro_batch: 4, sampler: {solver: sde}}",
            "learner.ranks=2",
            "learner.updates_per_batch=4",
        ],
        "learner.updates_per_batch must divide the 6 micro-batches of members of a rank, of which every update gets "
        "its share; got 4",
    ),
    "a likelihood in other micro-batches": (
        ["objective.type=grpo", "rollout={micro_batch: 4, sampler: {solver: sde}}", "learner.micro_batch=6"],
        "learner.micro_batch must equal rollout.micro_batch (4 members) for objective 'grpo', got 6: a likelihood is "
        "repeated as it was sampled",
    ),
    "maps of rewards without any": (
        [
            "advantage.spatial=map",
            "rewards=[{name: piqe, type: pyiqa}, {name: lr_consistency, type: lr_consistency, map: false}]",
        ],
        "advantage.spatial map needs a reward with a map (lr_consistency, sharpness, psnr_y, ssim_y, gmsd, lpips), got "
        "['piqe', 'lr_consistency'] without; add one, or write advantage.spatial=off",
    ),
    "no timestep": (
        ["rollout.sampler.steps=2", "objective.timestep_fraction=0.4"],
        "objective.timestep_fraction 0.4 of 2 sampler steps leaves no timestep to train on; raise one of them",
    ),
    "equal rewards": (
        ["rewards=[{name: a, type: pyiqa}, {name: a, type: lr_consistency}]"],
        "rewards: names must differ, got ['a', 'a']; give each its own `name`, and say the metric in `metric`",
    ),
    "the best of nothing": (
        ["checkpoint.best=a", "eval={data: {path: [x]}}"],
        "checkpoint.best must be a reward of the evaluations (none: only an online run with eval.every above 0 has "
        "any), got 'a'",
    ),
    "the best of another reward": (
        ["checkpoint.best=b", "eval={data: {path: [x]}, every: 2}"],
        "checkpoint.best must be a reward of the evaluations (a), got 'b'",
    ),
    "no reward": (["rewards=[]"], "rewards: List should have at least 1 item"),
    "policy on a GPU that workers do not get": (
        ["policy.device=cuda", "learner.gpus_per_rank=1"],
        "policy.device 'cuda' needs rollout.gpus_per_worker above 0, got 0; write rollout.gpus_per_worker=1",
    ),
    "policy on a GPU that the learner does not get": (
        ["policy.device=cuda", "rollout.gpus_per_worker=1"],
        "policy.device 'cuda' needs learner.gpus_per_rank above 0, got 0; write learner.gpus_per_rank=1",
    ),
    "GPUs for a policy on the CPU": (
        ["rollout.gpus_per_worker=0.5"],
        "rollout.gpus_per_worker must be 0 for policy.device 'cpu', got 0.5; write policy.device=cuda",
    ),
    "reward on a GPU that it does not get": (
        ["rewards.0.device=cuda"],
        "reward 'a': device 'cuda' needs gpus above 0, got 0; write gpus: 0.25",
    ),
    "GPU for a reward on the CPU": (
        ["rewards.0.gpus=0.25"],
        "reward 'a': gpus 0.25 needs device 'cuda', got 'cpu'; write device: cuda",
    ),
    "slash in a name": (["rewards.0.name=a/b"], "expected text without '/', because metric keys hold it, got 'a/b'"),
    "negative shift": (["policy.shift=-1"], "expected a number above 0 or 'flux2', got -1"),
    "probabilities": (
        ["data.degradation={first: {resize_probabilities: [0.5, 0.5, 0.5]}}"],
        "resize_probabilities must be at least 0 and sum to 1, got [0.5, 0.5, 0.5]",
    ),
    "two sources of prompts": (
        ["data.prompt=a wall", "data.tagger={type: python, file: x.py}"],
        "data.tagger and data.prompt 'a wall' exclude each other, got both: remove one",
    ),
    "tagger and prompt files": (
        ["data.prompt_path=texts", "data.tagger={type: python, file: x.py}"],
        "data.tagger and data.prompt_path 'texts' exclude each other, got both: remove one",
    ),
    "HR tags without HR": (
        ["data.kind=lr", "data.tagger={type: python, file: x.py}"],
        "data.tagger.image 'hr' needs data with HR, data.kind 'lr' has none; write tagger.image: lr",
    ),
    "CLIP on a GPU that it does not get": (
        ["data.tagger={type: clip, path: x, tags: y, device: cuda}"],
        "tagger: device 'cuda' needs gpus above 0, got 0; write gpus: 0.25",
    ),
    "GPU for CLIP on the CPU": (
        ["data.tagger={type: clip, path: x, tags: y, gpus: 0.5}"],
        "tagger: gpus 0.5 needs device 'cuda', got 'cpu'; write device: cuda",
    ),
    "a falling range of t_add": (
        [*ONE_STEP, "rollout.sampler.t_add_range=[900, -5]"],
        "rollout.sampler: t_add_range: expected 0 <= low < high < 1000, got [900, -5]",
    ),
    "t_add past the schedule": (["policy={type: naosd, t_add: 1500}"], "policy.t_add: Input should be less than 1000"),
    "t_diff before the schedule": (
        ["policy={type: naosd, t_diff: -1}"],
        "policy.t_diff: Input should be greater than or equal to 0",
    ),
    "moments that grow": (
        ["learner.optimizer.betas=[2, 3]"],
        "learner.optimizer.betas.0: Input should be less than 1 (got 2)",
    ),
    "an unknown set of LoRA targets": (
        ["policy.lora.targets=all"],
        "lora.targets must be one of ['attn_add', 'attn_add_single', 'attn_add_ffn'] for policy 'flux2sr', got 'all'",
    ),
    "a solver of another kind of policy": (
        ["rollout.sampler.solver=one_step"],
        "rollout.sampler.solver must be one of ['dpm2', 'euler', 'heun', 'sde'] for policy 'flux2sr', got 'one_step'",
    ),
    "an evaluation with a likelihood": (
        ["objective.type=grpo", "rollout.sampler.solver=sde", "eval={data: {path: x}, sampler: {solver: sde}}"],
        "eval.sampler.solver 'sde' is for training alone; write eval.sampler.solver=euler",
    ),
    "a ratio of steps without a likelihood": (
        ["objective.type=grpo"],
        "objective 'grpo' needs a stochastic sampler, got rollout.sampler.solver 'dpm2': an ODE has no likelihood; "
        "write rollout.sampler.solver=sde",
    ),
    "a ratio of one step": (
        ["policy.type=naosd", "objective.type=grpo"],
        "one step has no trajectory to take a likelihood of; write objective.type=gdpo, or give its latents a Gaussian "
        "with rollout.sampler={solver: gaussian, std: 0.1}",
    ),
    "NFT of one step": (
        ["policy.type=naosd"],
        "objective 'nft' needs a multi-step generator, got policy 'naosd' (DiffusionNFT's authors: unsupported); use "
        "objective gdpo, or set objective.allow_one_step: true",
    ),
    "a guarded step without a density": (
        ["objective={type: grpo, guard: true}", "rollout.sampler={solver: sde, sde: {step: cps}}"],
        "objective.guard needs a step with a density, got rollout.sampler.sde.step 'cps'; write "
        "rollout.sampler.sde.step=flow_sde",
    ),
    "noise that CPS cannot preserve": (
        ["objective.type=grpo", "rollout.sampler={solver: sde, sde: {step: cps, noise_level: 1.5}}"],
        "noise_level must be at most 1 for step 'cps', got 1.5",
    ),
    "a window past the last step": (
        ["objective.type=grpo", "rollout.sampler={solver: sde, steps: 6, sde: {window: random}}"],
        "sde.window 'random' must train 1 to 3 of 6 steps, got 4; change sde.size, sde.fraction or steps",
    ),
    "attributes that nobody reads": (
        ["rewards.0.attribute=fidelity"],
        "rewards ['a']: attribute is not read by advantage.aggregation 'decoupled'; remove it",
    ),
    "attributes that are missing": (
        ["advantage.aggregation=attribute_aware"],
        "rewards ['a'] need attribute: fidelity or perceptual for advantage.aggregation attribute_aware",
    ),
    "a kind of reward that is missing": (
        ["advantage.aggregation=attribute_aware", "rewards.0.attribute=fidelity"],
        "rewards: advantage.aggregation attribute_aware needs attribute ['perceptual'], got none",
    ),
    "shares of an HR image that is not there": (
        ["data.kind=lr", "advantage.aggregation=attribute_aware", "rewards.0.attribute=fidelity"],
        "reads each HR image's detailed share, and the data has no HR; write advantage.detail_share=0.5",
    ),
    "one probability": (
        ["data.degradation={second: {sinc_probability: 2}}"],
        "sinc_probability must be between 0 and 1, got 2.0",
    ),
    "a falling range": (
        ["data.degradation={first: {blur_sigma: [3, 1]}}"],
        "blur_sigma must be [low, high] with 0 <= low <= high, got [3.0, 1.0]",
    ),
}
"""What is wrong -> overrides of a valid recipe, and what the message must hold."""


def test_the_recipe_without_overrides_is_fine(recipe: Path) -> None:
    assert load_config(recipe).train.groups_per_step == 4


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_says_expected_got_and_instead(recipe: Path, case: str) -> None:
    overrides, message = REFUSALS[case]
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    assert message in str(caught.value)


PROGRAM = """
import sys, time
from pathlib import Path
from rl.config.load import ConfigError, load_config
try:
    load_config(Path(sys.argv[1]), sys.argv[2:])
except ConfigError as error:
    print(error)
print(time.process_time())
"""


@pytest.mark.parametrize("case", ["group of one", "updates over slots", "equal rewards"])
def test_refusal_takes_under_a_second_of_a_fresh_process(recipe: Path, case: str) -> None:
    """Processor time of interpreter, imports, reading and checking, so that a busy machine does not matter."""
    overrides, message = REFUSALS[case]
    command = [sys.executable, "-c", PROGRAM, str(recipe), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *text, seconds = done.stdout.strip().splitlines()
    assert message in "\n".join(text)
    assert float(seconds) < 1.0


@pytest.mark.parametrize("module", ["rl.config.online", "rl.config.load", "rl.types", "actors.cli", "actors.preflight"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    """Neither a refusal nor `isrl --help` waits for torch."""
    heavy = ("torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "pyiqa", "wandb")
    program = f"import sys, {module}; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Reading, overriding, checking and writing back a configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.config.base import Section
from rl.config.load import (
    ConfigError,
    dump_config,
    load_config,
    load_pretrain_config,
    load_recipe,
    load_training_config,
    validate,
)
from rl.config.objective import NFTSection
from rl.config.online import RunConfig
from rl.config.policy import POLICIES, policy_section
from rl.config.pretrain import PretrainSection
from rl.config.rollout import GaussianSection, ODESection, OneStepSection, StochasticSection
from rl.config.training import TrainingSection

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(CONFIGS.glob("**/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_sparse(path: Path) -> None:
    """No unknown key, nothing impossible; a recipe writes what it changes and explains itself in a comment."""
    assert isinstance(load_recipe(path), PretrainSection if "pretrain" in path.name else TrainingSection)
    text = path.read_text()
    assert text.startswith("# "), "a recipe begins with what it is for"
    assert len(text.splitlines()) < 80


def test_the_recipes_are_found() -> None:
    assert "quickstart" in {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dump_and_load_are_inverse(path: Path, tmp_path: Path) -> None:
    """What a run writes to config.yaml starts the same run, also after paths were made absolute."""
    copy = tmp_path / "config.yaml"
    config = load_recipe(path)
    for section in (config, config.absolute(tmp_path)):
        copy.write_text(dump_config(section))
        assert load_recipe(copy) == section
        assert dump_config(load_recipe(copy)) == copy.read_text()


def test_an_offline_recipe_survives_dump_and_load(tmp_path: Path) -> None:
    """Also where its objective has keys that say how groups are sampled."""
    raw = {
        "kind": "offline", "policy": {"type": "naosd"}, "objective": {"type": "gdpo", "draws": 2},
        "pools": {"path": "pool", "group_size": 4}, "scores": [{"name": "psnr", "scale": 2}],
    }  # fmt: skip
    first, copy = tmp_path / "offline.yaml", tmp_path / "config.yaml"
    first.write_text(yaml.safe_dump(raw))
    config = load_recipe(first)
    copy.write_text(dump_config(config))
    assert load_recipe(copy) == config
    assert "sample_from" not in copy.read_text()


def test_overrides_survive_dump_and_load(tmp_path: Path) -> None:
    """`off` is a word here, although YAML reads it as false."""
    quickstart, copy = CONFIGS / "quickstart.yaml", tmp_path / "config.yaml"
    degradation = "data.degradation={first: {blur_sigma: [1, 2]}}"
    overrides = ["learner.ema_decay=0.1", "rewards.0.weight=2.5", "advantage.spatial=off", degradation]
    config = load_config(quickstart, overrides)
    assert config.advantage.spatial == "off" and config.map_cell_px is None
    copy.write_text(dump_config(config))
    assert load_config(copy) == config != load_config(quickstart)


def test_overrides_reach_nested_keys_and_list_items(recipe: Path) -> None:
    config = load_config(
        recipe,
        ["train.steps=7", "rewards.0.weight=2", "policy.shift=3", "policy.lora.rank=8", "run.name='a=b'",
         "train.steps=9", "eval.data={path: [skimage:coffee], crop: 64}", "rollout.sampler.steps=3"],
    )  # fmt: skip
    assert config.train.steps == 9, "the last override of a key holds"
    assert config.rewards[0].weight == 2.0
    assert config.policy.model_dump()["shift"] == 3.0
    assert config.rollout.sampler == ODESection(steps=3)
    assert config.policy.lora.rank == 8
    assert config.run.name == "a=b", "only the first = divides"
    assert config.eval is not None and config.eval.data.path == ["skimage:coffee"]


def test_one_path_is_a_list(recipe: Path) -> None:
    assert load_config(recipe).data.path == ["skimage:camera"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"train.stepz: unknown key; did you mean 'steps'\?"),
        ("rolout.group_size=3", r"rolout: unknown key; did you mean 'rollout'\?"),
        ("rewards.0.wieght=2", r"rewards.0.wieght: unknown key; did you mean 'weight'\?"),
        ("policy.lora.ranks=2", r"policy.lora.ranks: unknown key; did you mean 'rank'\?"),
        ("eval.data={path: [x], crp: 64}", r"eval.data.crp: unknown key; did you mean 'crop'\?"),
        ("data.degradation={frist: {}}", r"data.degradation.frist: unknown key; did you mean 'first'\?"),
        ("train.zzzzzz=3", r"train.zzzzzz: unknown key; remove it"),
        ("objective.old_decay.schedul=none", r"objective.old_decay.schedul: unknown key; did you mean 'schedule'\?"),
        # where another member of the union reads it, that is said instead
        ("policy.t_add=3", r"policy.t_add: unknown key for policy type 'flux2sr'; read by naosd$"),
        ("rollout.sampler.sde={}", r"rollout.sampler.sde: unknown key for sampler solver 'dpm2'; read by sde$"),
        ("eval.data={path: x, hr_path: y}", r"eval.data.hr_path: unknown key for data kind 'hr'; read by paired$"),
        ("objective={type: gdpo, kl_weight: 1}", r"unknown key for objective type 'gdpo'; read by nft, grpo$"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.degradation=ligth", "  data.degradation: Input should be 'realesrgan', 'light' or 'gdpo' (got 'ligth')"),
        ("data.degradation={first: {jpeg_quality: [3]}}", "  data.degradation.first.jpeg_quality.1: Field required"),
        ("policy.shift=-1", "  policy.shift: expected a number above 0 or 'flux2', got -1"),
        ("policy.shift=flux1", "  policy.shift: expected a number above 0 or 'flux2', got 'flux1'"),
    ],
)
def test_a_mistake_in_a_value_of_two_forms_is_one_line(recipe: Path, override: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(recipe, [override])
    assert str(error.value).splitlines()[1:] == [line]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': expected key=value, for example train.steps=10"),
        ("=3", "override '=3': expected key=value"),
        ("rewards.1.name=b", "override 'rewards.1': expected an index below 1, got '1'"),
        ("rewards.first.name=b", "expected an index below 1, got 'first'"),
        ("rewards.3={}", "expected an index below 1, got '3'"),
        ("seed=[1", r"override 'seed=\[1': the value is not valid YAML"),
        ("data.path.0=x", "'data.path' is 'skimage:camera', which has no key '0'"),
        ("train.steps=many", r"train.steps: .*valid integer.* \(got 'many'\)"),
        ("train.steps=1.5", r"train.steps: .*integer.* \(got 1.5\)"),
        ("rollout.sampler.solver=ddim", r"sampler: solver must be one of dpm2, euler, heun, sde, .*, got 'ddim'$"),
    ],
)
def test_a_wrong_override_is_one_readable_line(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


def test_every_mistake_is_listed_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["train.steps=0", "learner.zero_stage=3", "data.crops=64"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{recipe}:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["train.steps", "learner.zero_stage", "data.crops"]


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.yaml: no such config file; recipes are in configs/"):
        load_config(tmp_path / "absent.yaml")
    broken, listed = tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("a: [1")
    listed.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="broken.yaml: not valid YAML"):
        load_config(broken)
    with pytest.raises(ConfigError, match="list.yaml: expected a mapping of sections, got list"):
        load_config(listed)


def test_a_section_is_frozen(minimal: dict[str, Any]) -> None:
    config = validate(RunConfig, minimal, "test")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("override", ["learner.optimizer.lr=.inf", "objective.kl_weight=.nan", "rewards.0.scale=.inf"])
def test_numbers_are_finite(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="Input should be a finite number"):
        load_config(recipe, [override])


@pytest.mark.parametrize(
    ("learner", "parts", "per_update"),
    [({}, 1, 6), ({"micro_batch": 4}, 3, 18), ({"micro_batch": 5}, 3, 18), ({"micro_batch": 99}, 1, 6)],
)
def test_derived_numbers(minimal: dict[str, Any], learner: dict[str, int], parts: int, per_update: int) -> None:
    """DiffusionNFT's 10 steps at 0.99 train 9 points; 4 groups of 12 on 2 ranks are 18 slots a rank, 6 an update."""
    raw = {**minimal, "learner": {"ranks": 2, "updates_per_batch": 3, "cpus_per_rank": 2, **learner}}
    config = validate(RunConfig, raw, "test")
    assert (config.slots, config.parts_per_group, config.micro_batches_per_group) == (9, parts, 9 * parts)
    assert config.micro_batches_per_update == per_update
    assert config.total_cpus == 1 + 1 + 2 * 2


def test_one_pair_of_a_group_is_one_micro_batch(minimal: dict[str, Any]) -> None:
    raw = {**minimal, "policy": {"type": "naosd"}, "objective": {"type": "diffusion_dpo", "draws": 3}}
    config = validate(RunConfig, raw, "test")
    assert (config.micro_batch, config.micro_batches_per_group, config.micro_batches_per_update) == (1, 3, 12)


def test_published_defaults(minimal: dict[str, Any]) -> None:
    """LucidNFT's group of 12 and rank 32; DiffusionNFT's beta, clip, KL weight, rate and solver."""
    config = validate(RunConfig, minimal, "test")
    assert (config.rollout.group_size, config.policy.lora.rank, config.policy.lora.alpha) == (12, 32, 64.0)
    assert config.objective == NFTSection(beta=1.0, adv_clip_max=5.0, kl_weight=1e-4)
    assert (config.learner.optimizer.lr, config.learner.optimizer.weight_decay) == (3e-4, 1e-4)
    assert config.sampler == config.eval_sampler == ODESection(solver="dpm2", steps=10)


@pytest.mark.parametrize(
    ("raw", "sampler", "evaluation"),
    [
        ({"policy": {"type": "naosd"}, "objective": {"type": "gdpo"}}, OneStepSection(), OneStepSection()),
        (
            {"objective": {"type": "grpo"}, "rollout": {"sampler": {"solver": "sde", "steps": 6}}},
            StochasticSection(steps=6), ODESection(solver="euler", steps=6),
        ),
        (
            {
                "policy": {"type": "naosd"}, "objective": {"type": "grpo"},
                "rollout": {"sampler": {"solver": "gaussian", "std": 0.1}},
            },
            GaussianSection(std=0.1), OneStepSection(),
        ),
        (
            {"eval": {"data": {"path": "x"}, "sampler": {"solver": "heun", "steps": 40}}},
            ODESection(), ODESection(solver="heun", steps=40),
        ),
    ],
)  # fmt: skip
def test_an_evaluation_samples_without_a_likelihood_or_as_it_says(
    minimal: dict[str, Any], raw: dict[str, Any], sampler: Section, evaluation: Section
) -> None:
    config = validate(RunConfig, {**minimal, **raw}, "test")
    assert (config.sampler, config.eval_sampler) == (sampler, evaluation)


class TestKind:
    """`kind` at the root says what a recipe is."""

    @pytest.mark.parametrize(
        ("override", "got"), [("kind=onlin", "'onlin'"), ("kind=null", "None"), ("kind=[online]", r"\['online'\]")]
    )
    def test_an_unknown_one_is_refused(self, recipe: Path, override: str, got: str) -> None:
        message = f"kind: expected one of online, offline, pretrain at the root of a recipe, got {got}$"
        with pytest.raises(ConfigError, match=message):
            load_recipe(recipe, [override])

    def test_a_recipe_without_one_is_refused(self, minimal: dict[str, Any], tmp_path: Path) -> None:
        file = tmp_path / "old.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in minimal.items() if key != "kind"}))
        with pytest.raises(ConfigError, match=r"kind: expected one of online, offline, pretrain .*, got none$"):
            load_recipe(file)

    def test_the_command_for_another_kind_is_named(self, recipe: Path) -> None:
        with pytest.raises(ConfigError, match="got kind 'pretrain'; run it with isrl pretrain"):
            load_config(CONFIGS / "pretrain_flux2sr_mini.yaml")
        with pytest.raises(ConfigError, match="got kind 'online'; run it with isrl train"):
            load_pretrain_config(recipe)
        with pytest.raises(ConfigError, match="got kind 'pretrain'; run it with isrl pretrain"):
            load_training_config(CONFIGS / "pretrain_flux2sr_mini.yaml")
        assert load_training_config(recipe) == load_config(recipe)

    def test_an_unknown_pretraining_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="type must be one of flux2sr, naosd, .*, got 'sd3'"):
            load_pretrain_config(CONFIGS / "pretrain_flux2sr_mini.yaml", ["type=sd3"])


@pytest.mark.parametrize("with_kind", [True, False])
def test_schema_version_1_is_refused_with_the_keys_that_moved(
    minimal: dict[str, Any], tmp_path: Path, with_kind: bool
) -> None:
    """What a run of that version wrote to config.yaml had no kind."""
    file = tmp_path / "config.yaml"
    raw: dict[str, Any] = {**minimal, "schema_version": 1, "rollout": {"vary": "noise", "sampler": {"shift": 1.0}}}
    file.write_text(yaml.safe_dump(raw if with_kind else {key: raw[key] for key in raw if key != "kind"}))
    with pytest.raises(ConfigError, match="schema_version: expected 2, got 1") as caught:
        load_recipe(file)
    moved = ("kind: online", "policy.shift", "solver sde", "solver: gaussian", "solver: one_step", "kind paired")
    assert all(words in str(caught.value) for words in moved)


def test_the_named_policies_have_whole_sections() -> None:
    """Each declares every fact that the system asks of it."""
    facts = ("builder", "size_multiple", "prediction", "lora_targets", "files", "tile_px")
    for name in POLICIES:
        section = policy_section(type=name)
        assert section.type == name
        assert all(hasattr(section, fact) for fact in facts)
        assert section.lora.targets in section.lora_targets and section.solvers

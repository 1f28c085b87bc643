"""Reading, overriding, checking and writing back a configuration."""

from pathlib import Path

import pytest
import yaml

from rl.config.base import Section
from rl.config.load import ConfigError, dump_config, load_config, validate
from rl.config.pretrain import load_pretrain_config
from rl.config.run import RunConfig

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(CONFIGS.glob("**/*.yaml"))
MINIMAL = {"data": {"path": "skimage:camera"}, "rewards": [{"name": "a", "type": "pyiqa"}]}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


def load_any(path: Path) -> Section:
    return load_pretrain_config(path) if "pretrain" in path.name else load_config(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_sparse(path: Path) -> None:
    """No unknown key, nothing impossible; a recipe writes what it changes and explains itself in a comment."""
    assert isinstance(load_any(path), Section)
    text = path.read_text()
    assert text.startswith("# "), "a recipe begins with what it is for"
    assert len(text.splitlines()) < 80


def test_the_recipes_are_found() -> None:
    assert "quickstart" in {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", [p for p in RECIPES if "pretrain" not in p.name], ids=lambda path: path.stem)
def test_dump_and_load_are_inverse(path: Path, tmp_path: Path) -> None:
    """What a run writes to config.yaml starts the same run."""
    config = load_config(
        path, ["learner.ema_decay=0.1", "rewards.0.weight=2.5", "data.degradation={first: {blur_sigma: [1, 2]}}"]
    )
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert dump_config(load_config(copy)) == copy.read_text()
    assert load_config(path) != config


def test_overrides_reach_nested_keys_and_list_items(recipe: Path) -> None:
    config = load_config(
        recipe,
        ["train.steps=7", "rewards.0.weight=2", "rollout.sampler.shift=3", "policy.lora.rank=8", "run.name='a=b'",
         "train.steps=9", "eval.data={path: [skimage:coffee], crop: 64}", "data.hr_path=null"],
    )  # fmt: skip
    assert config.train.steps == 9, "the last override of a key holds"
    assert config.rewards[0].weight == 2.0
    assert config.rollout.sampler.shift == 3.0
    assert config.policy.lora.rank == 8
    assert config.run.name == "a=b", "only the first = divides"
    assert config.eval.data is not None and config.eval.data.path == ["skimage:coffee"]


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
        ("rollout.sampler.shift=-1", "  rollout.sampler.shift: expected a number above 0 or 'flux2', got -1"),
        ("rollout.sampler.shift=flux1", "  rollout.sampler.shift: expected a number above 0 or 'flux2', got 'flux1'"),
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
        ("rollout.sampler.solver=ddim", r"solver: Input should be 'euler', 'heun', 'dpm2' or 'sde' \(got 'ddim'\)"),
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
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["train.steps", "data.crops", "learner.zero_stage"]


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


def test_a_section_is_frozen() -> None:
    config = validate(RunConfig, MINIMAL, "test")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("override", ["learner.optimizer.lr=.inf", "objective.kl_weight=.nan", "rewards.0.scale=.inf"])
def test_numbers_are_finite(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="Input should be a finite number"):
        load_config(recipe, [override])


def test_derived_numbers() -> None:
    """DiffusionNFT's 10 steps at 0.99 train 9 points; 4 groups on 2 ranks are 18 micro-batches a rank, 9 an update."""
    raw = {**MINIMAL, "learner": {"ranks": 2, "updates_per_batch": 2, "cpus_per_rank": 2}}
    config = validate(RunConfig, raw, "test")
    assert config.micro_batches_per_group == 9
    assert (config.micro_batches_per_rank, config.micro_batches_per_update) == (18, 9)
    assert config.total_cpus == 1 + 1 + 2 * 2


def test_published_defaults() -> None:
    """LucidNFT's group of 12 and rank 32; DiffusionNFT's beta, clip, KL weight, rate and solver."""
    config = validate(RunConfig, MINIMAL, "test")
    assert (config.rollout.group_size, config.policy.lora.rank, config.policy.lora.alpha) == (12, 32, 64.0)
    objective = config.objective
    assert (objective.beta, objective.adv_clip_max, objective.kl_weight) == (1.0, 5.0, 1e-4)
    assert (config.learner.optimizer.lr, config.learner.optimizer.weight_decay) == (3e-4, 1e-4)
    assert (config.rollout.sampler.solver, config.rollout.sampler.steps) == ("dpm2", 10)

"""Recipes: strict, typed, all errors at once, and written back as they were read."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from tcl.config.files import find_recipe, shipped_recipes
from tcl.config.recipe import Recipe, build_recipe, load_recipe, settings
from tcl.errors import ConfigError


def message(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return error.value.message


def test_every_shipped_recipe_loads_and_says_how_to_run_it() -> None:
    shipped = shipped_recipes()
    assert {"demo", "small", "tcl-4m"} <= set(shipped)
    for name, path in shipped.items():
        command = r"# (tcl|torchrun .* -m tcl_cli) (pretrain|finetune) "
        assert re.match(command, path.read_text(encoding="utf-8")), name
        load_recipe(name)


def test_the_published_settings() -> None:
    recipe = load_recipe("tcl-4m")
    assert (recipe.model.image_encoder, recipe.model.image_size) == ("deit_base_patch16_224", 256)
    assert (recipe.model.text_encoder, recipe.model.fusion_layer, recipe.model.embed_dim) == (
        "bert-base-uncased",
        6,
        256,
    )
    assert (recipe.loss.temperature, recipe.loss.momentum, recipe.loss.queue_size) == (0.07, 0.995, 65536)
    assert (recipe.loss.alpha, recipe.loss.mlm_probability) == (0.4, 0.15)
    assert (recipe.optim.lr, recipe.optim.warmup_lr, recipe.optim.min_lr) == (1e-4, 1e-5, 1e-5)
    assert (recipe.optim.warmup_steps, recipe.optim.weight_decay, recipe.optim.clip_norm) == (2000, 0.02, None)
    assert (recipe.data.batch_size, recipe.data.augment, recipe.train.epochs) == (64, "published", 30)


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads `1e-4` as a string; the declared type decides."""
    path = tmp_path / "recipe.yaml"
    path.write_text("optim: {lr: 1e-4}\n")
    assert yaml.safe_load("1e-4") == "1e-4"
    assert load_recipe(path).optim.lr == 1e-4
    assert load_recipe(path, ["optim.lr=3e-5"]).optim.lr == 3e-5


def test_resolved_recipes_read_back_unchanged(tmp_path: Path) -> None:
    for name in shipped_recipes():
        recipe = load_recipe(name, ["train.seed=7", "optim.clip_norm=null", "data.train=[a.csv, b.csv]"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe.to_yaml())
        assert load_recipe(path) == recipe


def test_all_errors_at_once_with_the_nearest_names() -> None:
    values = {
        "optim": {"learning_rate": 1, "lr": "fast", "weigth_decay": 0.1},
        "loss": {"alpha": 1.5},
        "data": {"epochs": 3},
        "trian": {},
    }
    with pytest.raises(ConfigError) as error:
        build_recipe(values, place="my.yaml")
    lines = message(error).splitlines()
    assert lines[0] == "my.yaml: 6 wrong settings"
    text = message(error)
    assert "optim.weigth_decay: no such setting; did you mean optim.weight_decay?" in text
    assert "data.epochs: no such setting; did you mean train.epochs?" in text
    assert "trian: no such setting" in text
    assert "optim.lr: input should be a valid number" in text and "not 'fast'" in text
    assert "loss.alpha: input should be less than or equal to 1, not 1.5" in text
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr", "is no setting"),
        ("optim.lr=[", "not valid YAML"),
        ("optim={lr: 1, lr: 2}", "'optim={lr: 1, lr: 2}': the value is not valid YAML: 'lr' stands there twice"),
        ("model={text_encoder_args: {layers: 1, layers: 2}}", "'layers' stands there twice"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0, not -1"),
        ("train.precision=fp8", "train.precision"),
        ("model.fusion_layer=12", "model: fusion_layer 12 leaves no fusion layer of 12"),
        ("model.text_encoder_args.num_attention_heads=5", "hidden_size 768 is no multiple of 5 heads"),
        ("model.max_length=600", "max_length 600 exceeds"),
        ("loss.queue_size=0", "loss.queue_size: input should be greater than or equal to 1, not 0"),
        ("optim.lr=.nan", "optim.lr: input should be a finite number"),
        ("data.batch_size=1.5", "data.batch_size: input should be a valid integer"),
        ("optim=3", "optim: input should be"),
        ("optim.lr.x=3", "holds a value, not settings"),
    ],
)
def test_wrong_overrides(override: str, expected: str) -> None:
    values = {"optim": {"lr": 1e-3}}
    with pytest.raises(ConfigError) as error:
        build_recipe(values, [override])
    assert expected in message(error)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.image_size=100"], "model: image_size 100 is no multiple of the patch, 16 pixels: .* use 96 or 112"),
        (["model.image_size=[96,100]"], "image_size: width 100 is no multiple of .* the last 4 would be ignored"),
        (["model.image_encoder_args={patch_size: 14}"], "256 is no multiple of the patch, 14 pixels: .* 252 or 266"),
        (["model.image_size=1023"], "use 1008 or 1024"),
        (["model.image_encoder=vit_base_patch32_224", "model.image_size=20"], "the last 20 would be ignored; use 32$"),
    ],
)
def test_image_sizes_that_leave_pixels_over(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_recipe({}, overrides)
    assert re.search(expected, message(caught), re.MULTILINE)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for name, content, expected in (
        ("list.yaml", "- 1\n", "a recipe is a mapping"),
        ("broken.yaml", "optim: {lr: 1\n", "not valid YAML"),
        ("binary.yaml", b"\xff\xfe\x00", "not valid YAML"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=expected):
            load_recipe(path)
    with pytest.raises(ConfigError) as error:
        find_recipe("dmo")
    assert error.value.hint == "did you mean 'demo'?"


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("optim:\n  lr: 1\nloss: {}\noptim:\n  lr: 2\n", "optim", "lines 1 and 4"),
        ("optim:\n  lr: 1\n\n  lr: 1\n", "lr", "lines 2 and 4"),
        ("loss: {alpha: 0.1, alpha: 0.2}\n", "alpha", "line 1"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(text: str, key: str, lines: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{path}: not valid YAML: '{key}' stands there twice, in {lines}$"):
        load_recipe(path)


LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: " + "[" * 3000, "nested more than 50 levels deep, in line 1"),
        ("optim: " + "{a: " * 3000, "nested more than 50 levels deep"),
        ("- " * 100_000, "nested more than 50 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(600)), "nested more than 50 levels deep, in line 5"),
        ("? " * 90_000, "nested more than 50 levels deep"),
        ("#" * 200_001, "200,001 bytes are no recipe"),
        ("a0: &a0 [1, 2]\n" + LAUGHS, "aliases that stand for more than 100,000 values"),
        ("m0: &a0 {x: 1}\n" + LAUGHS.replace("[", "{<<: [").replace("]", "]}"), "aliases that stand for more than"),
        ("optim: &a [*a]", "an alias that stands for what it is in"),
        ("optim: {lr: 0b_}", "a value that cannot be read"),
        ("optim: {lr: " + "1" * 5000 + "}", "a value that cannot be read"),
        ("optim: {lr: !!float fast}", "a value that cannot be read"),
        ("optim: {lr: 2020-13-45}", "a value that cannot be read"),
        ("optim: {lr: !!timestamp x}", "a value that cannot be read"),
        ("optim: {lr: !!binary \u00e9}", ""),
        ("optim: {lr: 1e999}", "optim.lr: input should be a finite number"),
    ],
)
def test_hostile_recipes_are_one_line_at_once(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    before = time.process_time()
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    assert time.process_time() - before < 1
    assert str(path) in message(error) and expected in message(error) and len(message(error)) < 600
    if len(text) < 10_000 and text.startswith("optim: "):
        with pytest.raises(ConfigError):
            build_recipe({}, [f"optim={text.removeprefix('optim: ')}"])


def test_merged_keys_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("optim: {<<: {lr: 1.0, min_lr: 0.5}, lr: 2.0}\n")
    assert (load_recipe(path).optim.lr, load_recipe(path).optim.min_lr) == (2.0, 0.5)


def test_an_empty_recipe_is_the_published_default(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_recipe(path) == Recipe()


def test_every_setting_is_documented() -> None:
    described = dict(settings())
    assert len(described) > 35
    assert all(described.values())
    assert "model.text_encoder_args.hidden_size" in described

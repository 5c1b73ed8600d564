"""Pages agree with the code: options, defaults, tables, numbers, paths."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer
from site_pages import PAGES, ROOT, blocks, name, toolchain_arguments

from toolchain.cli.main import app
from toolchain.devices.catalogue import known_targets
from toolchain.formats.preprocess import PIPELINES, Preprocess
from toolchain.formats.recipe import Recipe
from toolchain.formats.training_recipe import TrainingRecipe

REPOSITORY = "https://github.com/edge-toolchain/edge-toolchain/blob/main/"
LANGUAGES = {"sh", "python", "toml", "yaml", "text"}
GUIDES = (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md")
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def page(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_pages_have_commands():
    assert len(PAGES) > 30
    assert len(SHELL) > 60


def test_every_block_says_what_it_is():
    """`console` and the like would not be run."""
    assert not [block.place for block in BLOCKS if block.language not in LANGUAGES]


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_exist_with_these_options(block):
    """Also of the blocks that no test can run."""
    for command in block.commands:
        arguments = toolchain_arguments(command)
        if arguments is not None:
            parse(arguments)


def parse(arguments: list[str]) -> None:
    command, path = typer.main.get_command(app), "toolchain"
    while hasattr(command, "commands"):
        word, *arguments = arguments
        assert word in command.commands, f"{path} has no command {word}"
        command, path = command.commands[word], f"{path} {word}"
    command.make_context(path, arguments)


def test_examples_in_the_help_exist_with_these_options():
    texts = [(command.epilog or "").replace("\\\n", " ") for command in every_command()]
    examples = [line.strip() for text in texts for line in text.splitlines()]
    arguments = [toolchain_arguments(line) for line in examples if line.startswith("toolchain ")]
    assert len(arguments) >= 10
    for given in arguments:
        parse(given)


def every_command():
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        yield command


def test_an_unknown_option_is_found():
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["bench", "model.onnx", "--no-such-option"])


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda block: block.place)
def test_toml_is_toml(block):
    tomllib.loads(block.text)


@pytest.mark.parametrize("path", [*PAGES, *GUIDES], ids=name)
def test_paths_in_the_repository_exist(path):
    text = path.read_text(encoding="utf-8")
    linked = [ROOT / link for link in re.findall(re.escape(REPOSITORY) + r"([^)#\s>]+)", text)]
    quoted = [ROOT / place for place in re.findall(r"`((?:toolchain|tests|docs|targets|scripts)/[\w./-]+)`", text)]
    if path.parent != ROOT / "docs" and ROOT / "docs" not in path.parents:
        linked += [path.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)]
    assert not [str(place) for place in (*linked, *quoted) if not place.exists() and place.name != "NAME.toml"]


def test_nobody_is_told_to_install_a_release_that_does_not_exist():
    for path in (*PAGES, *GUIDES):
        assert "pip install edge-toolchain" not in path.read_text(encoding="utf-8"), name(path)


def test_the_default_recipe_is_the_one_shown():
    (shown,) = [b for b in blocks(ROOT / "docs/reference/recipe.md") if b.language == "toml"]
    assert Recipe.parse(tomllib.loads(shown.text)) == Recipe()
    uncommented = re.sub(r"^# (?=\w+ = )", "", shown.text, flags=re.MULTILINE)
    keys = tomllib.loads(uncommented.replace("latency_ms", "#").replace("keep = 0.7", "#"))
    Recipe.parse(keys)
    for table in ("calibrate", "prune", "quantize", "bench"):
        for key in type(getattr(Recipe(), table)).model_fields:
            assert re.search(rf"^#? ?{key} = ", shown.text, re.MULTILINE), f"{table}.{key} is not shown"


def test_the_preprocessing_table_has_every_key():
    text = page("docs/reference/preprocessing.md")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(Preprocess.model_fields)
    assert len(Preprocess.model_fields) == 9
    (shown,) = [b for b in blocks(ROOT / "docs/reference/preprocessing.md") if b.language == "toml"]
    assert {key: Preprocess.parse(value) for key, value in tomllib.loads(shown.text).items()} == PIPELINES


def test_the_training_recipe_page_has_every_key():
    text = page("docs/reference/training-recipe.md")
    schema = TrainingRecipe.model_json_schema()
    keys = {key for step in schema["$defs"].values() for key in step["properties"] if "technique" in step["properties"]}
    assert {key for key in keys if f"| `{key}` |" not in text} == set()


def test_every_profile_is_counted_and_listed():
    shipped = sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))
    listed = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| \d", page("docs/reference/target-profile.md"), re.MULTILINE)
    assert sorted(listed) == shipped == sorted(set(known_targets()) - {"host"})
    numbers = {11: "Eleven", 12: "Twelve", 13: "Thirteen", 14: "Fourteen", 15: "Fifteen"}
    assert f"{numbers[len(shipped)]} target profiles" in page("CHANGELOG.md")


def test_blocks_are_read_with_their_marks(tmp_path):
    text = '<!-- not run: needs a phone -->\n```sh\na \\\n  b\n```\nwords\n```toml title="x.toml"\nc = 1\n```\n'
    (tmp_path / "page.md").write_text(text)
    first, second = blocks(Path(tmp_path / "page.md"))
    assert (first.language, first.not_run, first.commands) == ("sh", "needs a phone", ["a    b"])
    assert (second.title, second.text, second.not_run) == ("x.toml", "c = 1\n", None)

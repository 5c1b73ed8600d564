"""Shell completion: the shell asks the installed command, as ``--install-completion`` sets it up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import pytest
import typer

from toolchain.api.bench import ARENA
from toolchain.benchmark.emulator import CPUS
from toolchain.benchmark.find import PLACE_FORMS
from toolchain.cli import options
from toolchain.cli.main import app
from toolchain.devices.catalogue import known_targets
from toolchain.formats.preprocess import PIPELINES
from toolchain.pruning.importance import ChannelCriterion
from toolchain.report.render import FORMATS

COMMANDS = (
    "export", "convert", "optimize", "prune", "train", "quantize", "verify", "inspect", "bench", "compare", "targets",
    "emulator",
)  # fmt: skip
"""The order of the help: the whole export, then its steps, then what is done with the result, then devices."""
EMULATED = [f"emulator:{name}" for name in CPUS]


def complete(words):
    """Return what bash offers for the last word of a command line."""
    environment = {
        **os.environ,
        "_TOOLCHAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "import sys; sys.argv = ['toolchain']; from toolchain.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.split()


def test_bash_completes_names_of_targets_as_users_type_them():
    names = [name for name in known_targets() if name.startswith("rasp")]
    assert len(names) > 1
    assert complete("toolchain export -t rasp") == names


def test_bash_completes_commands_and_options():
    assert complete("toolchain ex") == ["export"]
    assert complete("toolchain export --ca") == ["--calibration"]
    assert complete("toolchain targets d") == ["detect"]


def offered(command, parameter, incomplete=""):
    """Return what an option offers, without a process."""
    group = typer.main.get_command(app)
    for name in command.split():
        group = group.commands[name]
    (option,) = (p for p in group.params if p.name == parameter)
    return [item.value for item in option.shell_complete(typer.Context(group), incomplete)]


@pytest.mark.parametrize(
    ("command", "places"),
    [
        ("bench", ["local", "ssh:", "adb:", *EMULATED]),
        ("verify", ["local", "adb:", *EMULATED]),
        ("targets detect", ["local", "ssh:", "adb:"]),
    ],
)
def test_a_command_offers_the_places_that_it_takes(command, places):
    assert offered(command, "on") == places
    assert offered(command, "on", "lo") == ["local"]
    assert {place.partition(":")[0] for place in places} <= set(PLACE_FORMS)


def test_choices_are_those_of_the_modules_that_define_them():
    assert options.FORMATS == FORMATS
    assert tuple(PIPELINES) == options.PIPELINES
    assert get_args(ChannelCriterion) == options.CRITERIA
    assert tuple(ARENA) == options.ARENA
    assert offered("prune", "criterion", "l") == ["l2", "l1"]
    assert offered("export", "preprocess", "imagenet-") == ["imagenet-squash"]


def test_commands_are_listed_in_the_order_of_the_work():
    assert tuple(typer.main.get_command(app).commands) == COMMANDS

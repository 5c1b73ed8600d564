"""Reading recipes: from a file, an object or the default, with options that replace single settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from toolchain.core.errors import InputError
from toolchain.formats.faults import first_fault
from toolchain.formats.recipe import Prune, Recipe

MaxDrop = float | Literal["off"]
"""The largest loss of score that is accepted; "off": a model is written whatever it lost."""
PRUNE_GOALS = ("speedup", "latency_ms", "keep")


def read_recipe(recipe: Recipe | str | Path | None, max_drop: MaxDrop | None = None) -> Recipe:
    """Return a recipe.

    Args:
        recipe: a recipe, the path of one, or None for the default.
        max_drop: replaces the recipe's own; None keeps it.

    Raises:
        ConfigError: the file is missing or does not follow the schema.
        InputError: `max_drop` is negative or not a number.
    """
    if recipe is None:
        recipe = Recipe()
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    if max_drop is None:
        return recipe
    if max_drop != "off" and not 0 <= max_drop < float("inf"):
        raise InputError(f"is {max_drop:g}", where="--max-drop", hint="give 0 or more, or off")
    return recipe.model_copy(update={"max_drop": max_drop})


def with_prune(recipe: Recipe, given: Mapping[str, float | str | None], **options: str) -> Recipe:
    """Return the recipe with other settings of pruning; a goal among them replaces the recipe's goal.

    Args:
        recipe: the recipe.
        given: settings of `Prune` by name; None keeps the recipe's.
        options: names of the command's options for settings that have another name there.

    Raises:
        InputError: a value that is not allowed, or two goals.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return recipe
    settings = recipe.prune.model_dump()
    if any(name in chosen for name in PRUNE_GOALS):
        settings |= dict.fromkeys(PRUNE_GOALS)
    try:
        return recipe.model_copy(update={"prune": Prune.model_validate({**settings, **chosen})})
    except ValidationError as error:
        fault = first_fault(Prune, error, {**settings, **chosen}, "recipe")
        name = str(fault.place[0]) if fault.place else ""
        where = f"--{options.get(name, name).replace('_', '-')}" if name else "--speedup, --latency-ms, --keep"
        raise InputError(fault.what, where=where, hint=fault.hint if fault.place else "give one of them") from None

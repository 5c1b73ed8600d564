"""``toolchain targets``: list, show, detect and check device profiles."""

from __future__ import annotations

import typer

from toolchain import options
from toolchain.terminal import say, show, show_json

app = typer.Typer(help="List, show, detect and check device profiles.", no_args_is_help=True)


@app.command("list")
def targets_list(as_json: options.AsJson = False) -> None:
    """List all profiles."""
    from toolchain.report import list_targets
    from toolchain.target import known_targets, load_target

    found = [load_target(name) for name in known_targets()]
    if as_json:
        show_json([target.model_dump(mode="json") for target in found])
        return
    show(list_targets(found))


@app.command("show")
def targets_show(name: options.Profile, as_json: options.AsJson = False) -> None:
    """Show everything a profile states."""
    from toolchain.report import show_target
    from toolchain.target import load_target

    found = load_target(name)
    if as_json:
        show(found.to_json())
        return
    show(show_target(found))


@app.command("detect")
def targets_detect(as_json: options.AsJson = False) -> None:
    """Show this machine as a profile."""
    targets_show("host", as_json)


@app.command("check")
def targets_check(file: options.ProfileFile, as_json: options.AsJson = False) -> None:
    """Check a profile against the schema."""
    from toolchain.target import Target

    found = Target.load(file)
    if as_json:
        show_json({"file": str(file), "name": found.name, "valid": True})
        return
    say(f"{file}: a valid profile of {found.title}")

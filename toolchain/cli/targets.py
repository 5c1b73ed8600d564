"""``toolchain targets``: list, show, detect and check device profiles."""

from __future__ import annotations

from toolchain.cli import options
from toolchain.cli.command import command, new_app
from toolchain.cli.terminal import say, show, show_json, working
from toolchain.core.errors import InputError
from toolchain.core.files import check_output, write_text

app = new_app(help="List, show, detect and check device profiles.")


@command(app, "targets list", name="list")
def targets_list(as_json: options.AsJson = False) -> None:
    """List all profiles."""
    from toolchain.devices.catalogue import known_targets, load_target
    from toolchain.report.profiles import list_targets

    profiles = [load_target(name) for name in known_targets()]
    if as_json:
        show_json([target.model_dump(mode="json") for target in profiles])
        return
    show(list_targets(profiles))


@command(app, "targets show raspberry-pi-5", name="show")
def targets_show(name: options.Profile, as_json: options.AsJson = False) -> None:
    """Show a profile."""
    from toolchain.devices.catalogue import load_target
    from toolchain.report.profiles import show_target

    profile = load_target(name)
    if as_json:
        show(profile.to_json())
        return
    show(show_target(profile))


@command(app, "targets detect --on ssh:pi@raspberrypi.local -o pi.toml", name="detect")
def targets_detect(
    on: options.DetectPlace = "local",
    output: options.ProfileOutput = None,
    python: options.PlacePython = None,
    as_json: options.AsJson = False,
) -> None:
    """Show or write the profile of this machine or of another one."""
    from toolchain.benchmark.find import find_place
    from toolchain.report.profiles import show_target

    place = find_place(on, python=python)
    if place.timing is None:
        hint = "give local, ssh:HOST or adb:SERIAL"
        raise InputError(f"{on} is an emulated CPU, not a device to describe", where="--on", hint=hint)
    if output is not None:
        check_output(output)
    with working() as report, place.timing(report) as device:
        profile = device.detect()
    if output is not None:
        profile = profile.renamed(output.stem)
        write_text(output, profile.to_json() if output.suffix == ".json" else profile.to_toml())
    if as_json:
        show(profile.to_json())
    else:
        show(show_target(profile))
    if output is not None:
        say(f"written: {output}; use it with --target {output}")


@command(app, "targets check pi.toml", name="check")
def targets_check(file: options.ProfileFile, as_json: options.AsJson = False) -> None:
    """Check a profile against the schema."""
    from toolchain.formats.target import Target

    profile = Target.load(file)
    if as_json:
        show_json({"file": str(file), "name": profile.name, "valid": True})
        return
    say(f"{file}: a valid profile of {profile.title}")

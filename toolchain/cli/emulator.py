"""``toolchain emulator``: set up and list the emulated processors."""

from __future__ import annotations

from dataclasses import asdict

from toolchain.cli import options
from toolchain.cli.command import command, new_app
from toolchain.cli.terminal import say, show, show_json, working

app = new_app(help="Set up and list emulated processors.")


@command(app, "emulator setup", name="setup")
def emulator_setup(as_json: options.AsJson = False) -> None:
    """Download the emulator and an ARM Python with onnxruntime.

    Needs Debian or Ubuntu. About 200 MB go to $TOOLCHAIN_EMULATOR or the cache; nothing is installed on the system.
    """
    from toolchain.benchmark import emulator

    with working() as report:
        folder = emulator.set_up(report)
    if as_json:
        show_json({"folder": str(folder)})
        return
    say(f"ready in {folder}; try `toolchain bench --on emulator:cortex-a72 MODEL`")


@command(app, "emulator list", name="list")
def emulator_list(as_json: options.AsJson = False) -> None:
    """List the emulated processors, and say whether they can run here."""
    from toolchain.benchmark import emulator

    cpus = [
        {"name": name, **asdict(cpu), "unavailable": emulator.unavailable(name)} for name, cpu in emulator.CPUS.items()
    ]
    if as_json:
        show_json(cpus)
        return
    width = max(len(name) for name in emulator.CPUS)
    show("\n".join(f"{name:{width}}  {cpu.architecture:7}  int8: {cpu.int8}" for name, cpu in emulator.CPUS.items()))
    for reason in dict.fromkeys(str(row["unavailable"]) for row in cpus if row["unavailable"]):
        say(f"not ready: {reason}; {emulator.SETUP_HINT}")

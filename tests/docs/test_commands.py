"""Every command and every Python example of the site and the README is run, in a folder as a reader has it.

The folder holds what the first tutorial makes. Boards are an sshd on this machine, the phone is a scripted adb,
emulated processors are used where they are set up. A page that had to leave something out ends as skipped, with the
reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import phone
import pytest
import sshd
from site_pages import PAGES, ROOT, Block, blocks, name

from toolchain.benchmark import emulator

pytest.importorskip("torch")
pytest.importorskip("PIL")
pytestmark = pytest.mark.slow

TIMEOUT_S = 900.0
EMULATED = "cortex-a72"
WRAPPER = f"""#!{sys.executable}
# The command line with short measurements and with the scripted phone's folder.
import os

from toolchain.formats.recipe import Bench, Recipe

Recipe.model_fields["bench"].default = Bench(warmup_s=0.05, min_time_s=0.3, rounds=6, processes=2)
Recipe.model_rebuild(force=True)
if "PHONE_ROOT" in os.environ:
    from toolchain.benchmark import adb

    adb.DEVICE_FOLDER = os.environ["PHONE_ROOT"]
from toolchain.cli.main import main

main()
"""


def is_run(block: Block) -> bool:
    return block.not_run is None and (
        block.language in ("sh", "python") or (block.language == "toml" and block.title is not None)
    )


RUN = [page for page in PAGES if any(is_run(block) and block.language in ("sh", "python") for block in blocks(page))]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder after the first steps of the first tutorial, beside a clone of the repository."""
    above = tmp_path_factory.mktemp("example")
    (above / "edge-toolchain").symlink_to(ROOT)
    folder = above / "shapes"
    folder.mkdir()
    shutil.copy(ROOT / "docs/examples/shapes.py", folder)
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_module.py").write_text("from shapes import accuracy, build_model, samples\n")
    (folder / "recipe.toml").write_text("schema_version = 1\n")
    convert = 'toolchain convert shapes:build_model --input "image:batch,3,64,64" --output model.onnx'
    shell(f"python shapes.py\n{convert}\n", folder, environment(above))
    return above


@pytest.fixture
def folder(example, tmp_path):
    """A copy of the example's folder, for one page."""
    shutil.copytree(example, tmp_path / "reader", symlinks=True)
    return tmp_path / "reader/shapes"


def environment(above: Path) -> dict[str, str]:
    programs = above / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "toolchain").write_text(WRAPPER)
    (programs / "toolchain").chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def shell(text: str, folder: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_reader_can_follow(page, folder, tmp_path, monkeypatch, request):
    todo = [block for block in blocks(page) if is_run(block)]
    needed = {device for block in todo for device in block.needs}
    missing = {device: reason for device in sorted(needed) if (reason := lacking(device))}
    present = {device: DEVICES[device](tmp_path, folder, monkeypatch, request) for device in needed - missing.keys()}
    variables = environment(folder.parent)
    for more in present.values():
        variables |= more
    for block in todo:
        if block.needs & missing.keys():
            continue
        if block.title is not None:
            (folder / block.title).write_text(block.text)
        elif block.language == "python":
            (folder / "example.py").write_text(block.text)
            shell("python example.py", folder, variables)
        else:
            shell(block.text, folder, variables)
    if missing:
        pytest.skip("; ".join(missing.values()))


def lacking(device: str) -> str | None:
    """The reason why there is no such device here."""
    if device == "ssh":
        return sshd.unavailable()
    if device == "adb":
        return None if shutil.which("cc") else "there is no C compiler"
    return emulator.unavailable(EMULATED)


def board(tmp_path, folder, monkeypatch, request) -> dict[str, str]:
    """An sshd that is called `my-pi` and `my-zero`; its python3 has what the runner needs."""
    (tmp_path / "board").mkdir()
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    server = sshd.start(tmp_path / "board", environment=f"PATH={programs}")
    request.addfinalizer(lambda: sshd.stop(server.process))
    server.client.write_text(server.client.read_text().replace("Host board", "Host my-pi my-zero"))
    return {"TOOLCHAIN_SSH": f"ssh -F {server.client}"}


def android(tmp_path, folder, monkeypatch, request) -> dict[str, str]:
    """The scripted phone, with a runtime where the page has put the one of the phone."""
    (tmp_path / "phone").mkdir()
    device = phone.make(tmp_path / "phone", monkeypatch)
    shutil.copy(phone.LIBRARY, folder / "libonnxruntime.so")
    return {
        "FAKE_ADB": str(device.home), "TOOLCHAIN_ADB": str(phone.CLIENT), "PHONE_ROOT": str(device.root),
        "ANDROID_NDK_HOME": str(device.ndk),
    }  # fmt: skip


def emulated(tmp_path, folder, monkeypatch, request) -> dict[str, str]:
    return {"TOOLCHAIN_EMULATOR": str(emulator.folder())}


DEVICES = {"ssh": board, "adb": android, "emulator": emulated}

"""Makes a suite for ``toolchain bench --suite``: every model whose data is fetched, in float and in int8 for this host.

python -m benchmarks.suite FOLDER [MODEL ...]      # quantizes new models, then writes FOLDER/suite.toml
toolchain bench --suite FOLDER/suite.toml --format markdown
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.models import MODELS, NAMES, missing, store
from toolchain.api.quantize import quantize
from toolchain.core.errors import InputError, ToolchainError, did_you_mean
from toolchain.core.files import write_text

DESCRIPTION = "Pretrained models of benchmarks/models in float, and quantized by `toolchain quantize` on this machine"


def fp32(name: str) -> Path:
    """The float file, packaged or exported."""
    return MODELS[name].onnx_path()


def int8(name: str) -> Path:
    """The int8 file for this host by the default recipe, made once."""
    path = store.cache() / f"{name}.int8.onnx"
    if not path.exists():
        calibration = f"benchmarks.models.{name}:calibration_feeds"
        quantize(fp32(name), calibration=calibration, output=path)
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=NAMES, metavar="MODEL")
    options = parser.parse_args(arguments)
    rows = []
    try:
        for name in options.models:
            if name not in NAMES:
                raise InputError(f"no model {name!r}", hint=did_you_mean(name, NAMES))
            if reason := missing(name):
                print(f"{name}: left out, {reason}", file=sys.stderr)
                continue
            options.folder.mkdir(parents=True, exist_ok=True)
            for variant, path in (("fp32", fp32(name)), ("int8", int8(name))):
                print(f"{name} {variant}", flush=True)
                file = f"{name}.{variant}.onnx"
                shutil.copyfile(path, options.folder / file)
                rows.append(f'[[rows]]\nmodel = "{name}"\nvariant = "{variant}"\nfile = "{file}"\n')
        head = f'schema_version = 1\ndescription = "{DESCRIPTION}"\n'
        write_text(options.folder / "suite.toml", "\n".join([head, *rows]))
    except ToolchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"written: {options.folder / 'suite.toml'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The published JSON Schemas of all documents.

``python -m toolchain.formats.schemas docs/schemas`` writes ``NAME.schema.json`` for each document. Editors use them to
complete and check profiles and recipes. They are checked in, and a test compares them with the code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from toolchain.core.errors import InputError
from toolchain.core.files import write_text
from toolchain.formats.base import Document
from toolchain.formats.findings import Findings
from toolchain.formats.manifest import Manifest
from toolchain.formats.preprocess import Preprocess
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Results
from toolchain.formats.suite import Suite
from toolchain.formats.target import Target
from toolchain.formats.training_recipe import TrainingRecipe

DOCUMENTS: Mapping[str, type[Document]] = MappingProxyType(
    {
        "target": Target,
        "recipe": Recipe,
        "manifest": Manifest,
        "results": Results,
        "findings": Findings,
        "preprocess": Preprocess,
        "suite": Suite,
        "training": TrainingRecipe,
    }
)
"""Documents by the name of their schema."""


def schema_text(name: str) -> str:
    """Return the schema called `name` as indented JSON with a newline at the end."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **DOCUMENTS[name].model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def write_schemas(folder: str | Path) -> list[Path]:
    """Write every schema to ``folder/NAME.schema.json``, and return the paths.

    Raises:
        InputError: the folder cannot be written.
    """
    paths = []
    for name in DOCUMENTS:
        paths.append(Path(folder) / f"{name}.schema.json")
        write_text(paths[-1], schema_text(name))
    return paths


def main(arguments: list[str]) -> int:
    """Write the schemas to the folder in `arguments`; return 0, or 2 after a sentence on standard error."""
    try:
        if len(arguments) != 1:
            raise InputError("needs one folder", where="toolchain.formats.schemas", hint="for example docs/schemas")
        write_schemas(arguments[0])
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

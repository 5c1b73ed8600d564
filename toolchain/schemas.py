"""The published JSON Schemas of everything kept in files.

``python -m toolchain.schemas docs/schemas`` writes one ``NAME.schema.json`` a document; editors use them
to complete and check profiles and recipes. Checked in, and a test compares them with the code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from toolchain.artifact import Manifest
from toolchain.document import Document
from toolchain.errors import InputError
from toolchain.files import write_text
from toolchain.findings import Findings
from toolchain.measurement import Results
from toolchain.preprocess import Preprocess
from toolchain.recipe import Recipe
from toolchain.suite import Suite
from toolchain.target import Target
from toolchain.training import Training

DOCUMENTS: Mapping[str, type[Document]] = MappingProxyType(
    {
        "target": Target,
        "recipe": Recipe,
        "manifest": Manifest,
        "results": Results,
        "findings": Findings,
        "preprocess": Preprocess,
        "suite": Suite,
        "training": Training,
    }
)
"""The document of every schema, by the schema's name."""


def schema_text(name: str) -> str:
    """The schema called `name` as indented JSON with a trailing newline."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **DOCUMENTS[name].model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def write_schemas(folder: str | Path) -> list[Path]:
    """Write every schema to ``folder/NAME.schema.json``; returns the paths written.

    Raises:
        InputError: the folder cannot be written.
    """
    paths = []
    for name in DOCUMENTS:
        paths.append(Path(folder) / f"{name}.schema.json")
        write_text(paths[-1], schema_text(name))
    return paths


def main(arguments: list[str]) -> int:
    """Write the schemas to the folder given; 0 when done, 2 with a sentence on standard error otherwise."""
    try:
        if len(arguments) != 1:
            raise InputError("takes one folder", where="toolchain.schemas", hint="for example docs/schemas")
        write_schemas(arguments[0])
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

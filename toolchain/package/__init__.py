"""Writing an exported folder: the model's files, golden data, manifest and a page for the app developer."""

from toolchain.package.golden import Golden, Mismatch, check_golden, load_golden
from toolchain.package.write import MANIFEST, check_folder, write_artifact

__all__ = ["MANIFEST", "Golden", "Mismatch", "check_folder", "check_golden", "load_golden", "write_artifact"]

"""The house's walls: imports run down only, and what no file may do.

A *room* is a file or folder directly below ``toolchain/``. Rooms have ranks; a room may import rooms of a
lower rank. Rooms of one rank do not import each other, except the nouns, which may as long as no cycle
arises. Each rule is a function from a folder to its offences, so that each is also shown to catch one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import toolchain

HOUSE = Path(toolchain.__file__).parent

NOUNS = {
    "target", "recipe", "data", "measurement", "artifact", "observation", "score", "detect", "loading", "preprocess",
    "readers", "tensors", "cpuinfo", "schemas", "suite", "findings", "training",
}  # fmt: skip
STAGES = {
    "convert", "optimize", "observe", "prune", "quantize", "compress", "train", "search", "bench", "estimate",
    "package",
}  # fmt: skip
RANKS: list[set[str]] = [
    {"errors"}, {"files"}, {"document"}, NOUNS, {"graph"}, {"rules"}, {"ops"}, {"cost"}, STAGES,
    {"dynamic", "fidelity"}, {"refine", "sensitivity"}, {"int8", "verification"},
    {"mixed", "aware", "latency", "reconstruct"}, {"candidates"}, {"pruning", "chain"}, {"report"}, {"preparation"},
    {"pipeline", "pruned_file", "trained_folder"}, {"terminal", "options"},
    {"cli_bench", "cli_emulator", "cli_prune", "cli_targets", "cli_train"}, {"cli"},
    {"__main__", "__init__"},
]  # fmt: skip

TORCH_ROOMS = {"convert", "train", "search"}
TERMINAL_ROOMS = {
    "cli", "cli_bench", "cli_emulator", "cli_prune", "cli_targets", "cli_train", "options", "report", "terminal",
}  # fmt: skip
PAGE_LIBRARIES = {"altair", "vl_convert", "jinja2", "markupsafe"}
USER_CODE = "loading.py"  # runs what users wrote, which may raise anything; it raises our error instead
LONGEST_FILE = 450


@dataclass(frozen=True)
class Import:
    """`module` is absolute. lazy: inside a function; typing: under ``if TYPE_CHECKING``."""

    where: str
    room: str
    module: str
    lazy: bool
    typing: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def to(self) -> str | None:
        """The room imported, None outside the house."""
        parts = self.module.split(".")
        return None if parts[0] != "toolchain" else (parts[1] if len(parts) > 1 else "__init__")


def files(house: Path) -> list[Path]:
    return sorted(p for p in house.rglob("*.py") if "_targets" not in p.parts)


def trees(house: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """Every file, its name below the house, and its syntax tree."""
    for path in files(house):
        yield path, str(path.relative_to(house)), parsed(path.read_text(encoding="utf-8"))


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports(house: Path) -> list[Import]:
    found: list[Import] = []
    for path, name, tree in trees(house):
        room = Path(name).parts[0].removesuffix(".py")
        package = ["toolchain", *path.relative_to(house).parent.parts]

        def visit(node: ast.AST, lazy: bool, typing: bool, name=name, room=room, package=package) -> None:
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                modules = [f"toolchain.{a.name}" if is_room(house, a.name) else module for a in node.names]
                modules = modules if module == "toolchain" else [module]
            for module in modules:
                found.append(Import(f"{name}:{node.lineno}", room, module, lazy, typing))
            lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
            for child in ast.iter_child_nodes(node):
                visit(child, lazy, typing)

        visit(tree, lazy=False, typing=False)
    return found


def is_room(house: Path, name: str) -> bool:
    return (house / f"{name}.py").is_file() or (house / name).is_dir()


def rank(room: str) -> int | None:
    return next((i for i, rooms in enumerate(RANKS) if room in rooms), None)


# ------------------------------------------------------------------------------------------------ rules


def unranked(house: Path) -> list[str]:
    rooms = {p.name.removesuffix(".py") for p in house.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    return [f"{room}: give it a rank in RANKS" for room in sorted(rooms) if rank(room) is None]


def upward(house: Path) -> list[str]:
    """Imports of a room that is not below."""
    offences = []
    for i in imports(house):
        mine, theirs = rank(i.room), rank(i.to or "")
        if i.to is None or i.to == i.room or mine is None or theirs is None:
            continue
        if theirs > mine or (theirs == mine and i.room not in NOUNS):
            offences.append(f"{i.where} imports {i.module}")
    return offences


def cycles(house: Path) -> list[str]:
    """Cycles of the imports that run when a room is loaded (lazy ones may point back)."""
    edges: dict[str, set[str]] = {}
    for i in imports(house):
        if i.to and i.to != i.room and not i.lazy and not i.typing:
            edges.setdefault(i.room, set()).add(i.to)
    offences = []

    def walk(room: str, path: tuple[str, ...]) -> None:
        if room in path:
            loop = path[path.index(room) :]
            if room == min(loop):
                offences.append(" -> ".join([*loop, room]))
            return
        for other in sorted(edges.get(room, ())):
            walk(other, (*path, room))

    for start in sorted(edges):
        walk(start, ())
    return sorted(set(offences))


def misplaced(house: Path) -> list[str]:
    """Third-party imports outside their rooms; torch nowhere at module level."""
    offences = []
    for i in imports(house):
        if i.top in ("torch", "torchvision") and (i.room not in TORCH_ROOMS or not (i.lazy or i.typing)):
            offences.append(f"{i.where} imports {i.module}: only inside functions of {', '.join(sorted(TORCH_ROOMS))}")
        if i.top in ("rich", "typer") and i.room not in TERMINAL_ROOMS:
            offences.append(f"{i.where} imports {i.module}: only in {', '.join(sorted(TERMINAL_ROOMS))}")
        if i.top in PAGE_LIBRARIES and (i.room != "report" or not (i.lazy or i.typing)):
            offences.append(f"{i.where} imports {i.module}: only inside functions of report")
        if i.top == "onnxscript" and i.room != "optimize":
            offences.append(f"{i.where} imports {i.module}: only in optimize")
    return offences


def too_long(house: Path) -> list[str]:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files(house)}
    return [f"{p.relative_to(house)} has {n} lines" for p, n in lengths.items() if n > LONGEST_FILE]


def swallowed(house: Path) -> list[str]:
    """``except Exception`` outside the one place that runs users' code, and any wide handler that raises nothing."""
    offences = []
    for _, name, tree in trees(house):
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            narrow = not caught & {"Exception", "BaseException"}
            if not narrow and (not raises or ("Exception" in caught and name != USER_CODE)):
                offences.append(f"{name}:{node.lineno}")
    return offences


def printed(house: Path) -> list[str]:
    return [
        f"{name}:{node.lineno}"
        for _, name, tree in trees(house)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


RULES = [unranked, upward, cycles, misplaced, too_long, swallowed, printed]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule):
    assert rule(HOUSE) == []


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (unranked, "attic.py", ""),
        (upward, "errors.py", "from toolchain.files import write_text"),
        (upward, "graph/io.py", "def f():\n    from toolchain import ops"),
        (upward, "quantize/plan.py", "from toolchain.observe import observe"),
        (upward, "quantize/plan.py", "from ..prune import plan"),
        (upward, "report/html.py", "import toolchain.pipeline"),
        (cycles, "target.py", "import toolchain.detect"),
        (misplaced, "bench/x.py", "def f():\n    import torch.nn"),
        (misplaced, "convert/x.py", "from torch import nn"),
        (misplaced, "pipeline.py", "from rich.progress import track"),
        (misplaced, "convert/x.py", "import onnxscript"),
        (misplaced, "ops.py", "import altair"),
        (too_long, "ops.py", "#\n" * 451),
        (swallowed, "data.py", "try:\n    pass\nexcept (ValueError, Exception):\n    raise"),
        (swallowed, "data.py", "try:\n    pass\nexcept:\n    pass"),
        (swallowed, "loading.py", "try:\n    pass\nexcept Exception:\n    pass"),
        (printed, "bench/x.py", "def f():\n    print('x')"),
    ],
)
def test_a_rule_catches_its_offence(tmp_path, rule, name, text):
    for room in ("prune", "observe"):
        (tmp_path / room).mkdir()
    (tmp_path / "ops.py").touch()
    (tmp_path / "detect.py").write_text("from toolchain.target import Target")
    assert rule(tmp_path) == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert len(rule(tmp_path)) == 1


def test_what_is_allowed_is_not_called_an_offence(tmp_path):
    (tmp_path / "convert").mkdir()
    (tmp_path / "convert" / "torch_module.py").write_text(
        "from typing import TYPE_CHECKING\nfrom toolchain.graph import io\nfrom . import upgrade\n"
        "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
    )
    (tmp_path / "target.py").write_text("def f():\n    from toolchain.detect import detect_host\n")
    (tmp_path / "detect.py").write_text("from toolchain.target import Target\n")
    (tmp_path / "files.py").write_text("try:\n    pass\nexcept BaseException:\n    raise\n")
    assert [offence for rule in RULES for offence in rule(tmp_path)] == []


# A board that only benchmarks has numpy and onnxruntime; only `convert` of a module needs torch.
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("toolchain.bench", ["torch", "onnx", "onnx_ir", "onnxscript"]),
        ("toolchain.cli", ["torch"]),
        ("toolchain.report.html", ["torch", "onnx", "onnx_ir", "altair", "vl_convert", "jinja2"]),
    ],
)
def test_importing_it_stays_light(module, unwanted):
    code = f"import sys, {module}; sys.stdout.write(' '.join(m for m in {unwanted} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""

"""The structure of the package, read from its imports: one direction, no circle, and what no file may do.

Nothing here lists which package lies above which: that follows from the imports, lazy ones and those for type checkers
included. `docs/architecture.md` shows the packages in order, from the command line down; the test holds it to the
imports. Each rule is a function from a folder to its offences, so that each is also shown to catch one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import toolchain

PACKAGE = Path(toolchain.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"

TORCH_PACKAGES = {"conversion", "training"}
TERMINAL_PACKAGES = {"cli", "report"}
PAGE_LIBRARIES = {"altair", "vl_convert", "jinja2", "markupsafe"}
USER_CODE = "core/user_code.py"  # runs what users wrote, which may raise anything; it raises our error instead
LONGEST_FILE = 450
MOST_PLACES = 26


@dataclass(frozen=True)
class Import:
    """`module` is absolute: the file or package imported. lazy: inside a function; typing: for type checkers only."""

    where: str
    file: str
    module: str
    lazy: bool
    typing: bool

    @property
    def place(self) -> str:
        """The package below ``toolchain`` that imports; a file directly below it is a place of its own."""
        return place_of(self.file)

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def to(self) -> str | None:
        """The place imported, None outside ``toolchain``."""
        return place_of(self.module) if self.top == "toolchain" else None


def place_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if "_targets" not in p.parts)


def module_of(root: Path, path: Path) -> str:
    parts = ["toolchain", *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def trees(root: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """Every file, its name below the package, and its syntax tree."""
    for path in files(root):
        yield path, str(path.relative_to(root)), parsed(path.read_text(encoding="utf-8"))


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports(root: Path) -> list[Import]:
    modules = frozenset(module_of(root, path) for path in files(root))
    return [
        found
        for path, name, _ in trees(root)
        for found in imports_of(path.read_text(encoding="utf-8"), name, module_of(root, path), modules)
    ]


@cache
def imports_of(source: str, name: str, file: str, modules: frozenset[str]) -> tuple[Import, ...]:
    """The imports of one file. modules: all that exist, to tell a module from a name in one."""
    gathered: list[Import] = []
    package = ["toolchain", *Path(name).parent.parts]

    def visit(node: ast.AST, lazy: bool, typing: bool) -> None:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            targets = [full if full in modules else module for full in names]
        for target in dict.fromkeys(targets):
            gathered.append(Import(f"{name}:{node.lineno}", file, target, lazy, typing))
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in ast.iter_child_nodes(node):
            visit(child, lazy, typing)

    visit(parsed(source), lazy=False, typing=False)
    return tuple(gathered)


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """One circle among the edges, as a sentence; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for start, end in edges:
        if start != end:
            graph.setdefault(start, set()).add(end)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def floors(root: Path) -> Mapping[str, int]:
    """Return the floor of each place: 0 imports no other; the others lie one above the highest place they import."""
    below: dict[str, set[str]] = {place: set() for place in places(root)}
    for i in imports(root):
        if i.to in below and i.to != i.place:
            below[i.place].add(i.to)
    heights: dict[str, int] = {}
    for place in TopologicalSorter(below).static_order():
        heights[place] = 1 + max((heights[other] for other in below[place]), default=-1)
    return heights


def places(root: Path) -> set[str]:
    return {p.stem for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}


def listed(text: str) -> list[str]:
    """The packages in the order of the layout in the architecture page, the topmost first."""
    layout = text.split("## Layout", 1)[1].split("```")[1]
    return re.findall(r"^([a-z_]+)/", layout, re.MULTILINE)


# ------------------------------------------------------------------------------------------------ rules


def circles_of_files(root: Path) -> list[str]:
    """A file that imports itself through others, wherever its imports stand."""
    return circle((i.file, i.module) for i in imports(root) if i.to)


def circles_of_packages(root: Path) -> list[str]:
    """Two packages of which each needs the other: the files could not be put on floors."""
    return circle((i.place, i.to) for i in imports(root) if i.to)


def too_many_places(root: Path) -> list[str]:
    number = len(places(root))
    return [f"{number} places at the top level, {MOST_PLACES} at most"] if number > MOST_PLACES else []


def without_a_purpose(root: Path) -> list[str]:
    """A package whose ``__init__`` does not say what it is for, or does anything else but the outermost."""
    offences = []
    for path, name, tree in trees(root):
        if path.name == "__init__.py" and path.parent != root and not ast.get_docstring(tree):
            offences.append(f"{name}: say the package's one job in a docstring")
        if path.name == "__init__.py" and path.parent != root and len(tree.body) > 1:
            offences.append(f"{name}: holds code; give it a file with a name")
    return offences


def misplaced(root: Path) -> list[str]:
    """Third-party imports outside their packages; torch nowhere at module level."""
    offences = []
    for i in imports(root):
        if i.top in ("torch", "torchvision") and (i.place not in TORCH_PACKAGES or not (i.lazy or i.typing)):
            known = ", ".join(sorted(TORCH_PACKAGES))
            offences.append(f"{i.where} imports {i.module}: only inside functions of {known}")
        if i.top in ("rich", "typer") and i.place not in TERMINAL_PACKAGES:
            offences.append(f"{i.where} imports {i.module}: only in {', '.join(sorted(TERMINAL_PACKAGES))}")
        if i.top in PAGE_LIBRARIES and (not i.file.startswith("toolchain.report") or not (i.lazy or i.typing)):
            offences.append(f"{i.where} imports {i.module}: only inside functions of report")
        if i.top == "onnxscript" and i.place != "optimization":
            offences.append(f"{i.where} imports {i.module}: only in optimization")
    return offences


def too_long(root: Path) -> list[str]:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files(root)}
    return [f"{p.relative_to(root)} has {n} lines" for p, n in lengths.items() if n > LONGEST_FILE]


def swallowed(root: Path) -> list[str]:
    """``except Exception`` outside the one place that runs users' code, and any wide handler that raises nothing."""
    offences = []
    for _, name, tree in trees(root):
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            narrow = not caught & {"Exception", "BaseException"}
            if not narrow and (not raises or ("Exception" in caught and name != USER_CODE)):
                offences.append(f"{name}:{node.lineno}")
    return offences


OPENINGS = re.compile(r"(As|How|In|Of|Such|That|Those|What|Where|Whether|Which|Who|With) ")


def opens_like_a_riddle(root: Path) -> list[str]:
    """Docstrings that do not begin with a verb or a noun: who reads one by itself has to guess what it is about."""
    offences = []
    for _, name, tree in trees(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if OPENINGS.match(text):
                    offences.append(f"{name}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    return offences


def printed(root: Path) -> list[str]:
    return [
        f"{name}:{node.lineno}"
        for _, name, tree in trees(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def two_meanings(root: Path) -> list[str]:
    """Class names, and type aliases, that are defined in more than one file."""
    where: dict[str, list[str]] = {}
    for _, name, tree in trees(root):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(name)
    return [f"{name}: {', '.join(found)}" for name, found in sorted(where.items()) if len(found) > 1]


RULES = [
    circles_of_files, circles_of_packages, too_many_places, without_a_purpose, misplaced, too_long, swallowed, printed,
    two_meanings, opens_like_a_riddle,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule):
    assert rule(PACKAGE) == []


def test_the_layout_in_the_docs_runs_one_way():
    """Every package is on the page, and imports only those that stand below it there."""
    order = listed(ARCHITECTURE.read_text(encoding="utf-8"))
    assert sorted(order) == sorted(places(PACKAGE) - {"__init__", "__main__"})
    upward = [
        f"{i.where} imports {i.module}"
        for i in imports(PACKAGE)
        if i.to in order and i.place in order and order.index(i.to) < order.index(i.place)
    ]
    assert upward == []


def test_floors_are_derived_from_imports():
    heights = floors(PACKAGE)
    assert heights["core"] == 0
    assert all(heights[i.to] < heights[i.place] for i in imports(PACKAGE) if i.to and i.to != i.place)


OTHER_FILES = {
    "core/errors.py": "",
    "core/user_code.py": "",
    "devices/detect.py": "from toolchain.formats.target import Target",
    "formats/target.py": "from toolchain.core import errors",
    "graph/query.py": "from toolchain.core.errors import x",
    "ops/table.py": "from toolchain.graph import query",
}


@pytest.fixture
def package(tmp_path):
    """A small package without an offence."""
    for name, text in OTHER_FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        (file.parent / "__init__.py").write_text('"""Its job."""')
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (circles_of_packages, "core/files.py", "from toolchain.graph.query import x"),
        (circles_of_packages, "graph/io.py", "def f():\n    from toolchain.ops import table"),
        (circles_of_packages, "graph/io.py", "from ..ops import table"),
        (circles_of_packages, "formats/x.py", "import toolchain.devices.detect"),
        (circles_of_packages, "core/x.py", "if TYPE_CHECKING:\n    from toolchain.formats.target import Target"),
        (
            circles_of_files,
            "core/errors.py",
            "from toolchain.core.user_code import x\nfrom toolchain.core import files",
        ),
        (circles_of_files, "graph/query.py", "def f():\n    from toolchain.graph import run"),
        (circles_of_files, "graph/query.py", "def f():\n    from . import run"),
        (too_many_places, "", ""),
        (without_a_purpose, "ops/__init__.py", ""),
        (without_a_purpose, "ops/__init__.py", '"""Its job."""\nimport os'),
        (misplaced, "ops/x.py", "def f():\n    import torch.nn"),
        (misplaced, "conversion.py", "from torch import nn"),
        (misplaced, "ops/x.py", "from rich.progress import track"),
        (misplaced, "conversion.py", "import onnxscript"),
        (misplaced, "ops/table.py", "import altair"),
        (too_long, "ops/table.py", "#\n" * 451),
        (swallowed, "ops/x.py", "try:\n    pass\nexcept (ValueError, Exception):\n    raise"),
        (swallowed, "ops/x.py", "try:\n    pass\nexcept:\n    pass"),
        (swallowed, "core/user_code.py", "try:\n    pass\nexcept Exception:\n    pass"),
        (printed, "ops/x.py", "def f():\n    print('x')"),
        (two_meanings, "ops/x.py", "class Job: ..."),
        (opens_like_a_riddle, "ops/x.py", '"""What is known of an operator."""'),
        (opens_like_a_riddle, "ops/x.py", 'def f():\n    """Of one node."""'),
    ],
)
def test_a_rule_catches_its_offence(package, rule, name, text):
    (package / "core" / "user_code.py").write_text("def f():\n    from toolchain.core import files")
    (package / "graph" / "run.py").write_text("from toolchain.graph.query import op\nclass Job: ...")
    assert rule(package) == []
    if rule is too_many_places:
        for number in range(MOST_PLACES):
            (package / f"place{number}.py").touch()
    elif name == "core/errors.py":
        (package / "core" / "user_code.py").write_text("from toolchain.core.errors import x")
        (package / name).write_text(text)
    else:
        (package / name).write_text(text)
    assert len(rule(package)) == 1


def test_what_is_allowed_is_not_called_an_offence(package):
    (package / "conversion").mkdir()
    (package / "conversion" / "__init__.py").write_text('"""Its job."""')
    (package / "conversion" / "torch_module.py").write_text(
        "from typing import TYPE_CHECKING\nfrom toolchain.graph import query\nfrom . import upgrade\n"
        "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
    )
    (package / "core" / "files.py").write_text("try:\n    pass\nexcept BaseException:\n    raise\n")
    assert [offence for rule in RULES for offence in rule(package)] == []


# A board that only benchmarks has numpy and onnxruntime; only `convert` of a module needs torch.
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("toolchain.benchmark.bench", ["torch", "onnx", "onnx_ir", "onnxscript"]),
        ("toolchain.cli.main", ["torch"]),
        ("toolchain.report.html.page", ["torch", "onnx", "onnx_ir", "altair", "vl_convert", "jinja2"]),
    ],
)
def test_importing_it_stays_light(module, unwanted):
    code = f"import sys, {module}; sys.stdout.write(' '.join(m for m in {unwanted} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""

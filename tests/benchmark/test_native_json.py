"""The JSON reader of the runner in C, ``json.h``, compared with Python's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phone import WARNINGS, needs_cc

from toolchain.benchmark.native.build import COMPILER_FLAGS, SOURCE_FOLDER


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """json.h, with every check that a compiler can add, as a function from a line to the value it read."""
    program = tmp_path_factory.mktemp("json") / "echo"
    checks = [*WARNINGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    source = Path(__file__).with_name("json_echo.c")
    subprocess.run(["cc", *COMPILER_FLAGS, *checks, f"-I{SOURCE_FOLDER}", "-o", str(program), str(source)], check=True)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def ask(line: bytes) -> str:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer.endswith(b"\n"), "it crashed"
            return answer.decode().strip()

        yield ask
        process.stdin.close()
        assert process.wait() == 0


def understood(value):
    """The text that the echo program writes for a value."""
    if isinstance(value, str):
        return f'"{value.encode().hex()}"'
    if isinstance(value, list):
        return f"[{','.join(map(understood, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{understood(k)}:{understood(v)}' for k, v in value.items())}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else f"{value:.17g}"


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
QUIET = [HealthCheck.function_scoped_fixture]


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def strict(line: str):
    """Read a line with Python's reader; raise ValueError for lines that only ours refuses."""

    def unique(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    def constant(text):
        raise ValueError(text)

    value = json.loads(line, object_pairs_hook=unique, parse_int=float, parse_constant=constant)
    if "\\u0000" in line or depth(value) > 8:
        raise ValueError
    json.dumps(value, ensure_ascii=False).encode()  # an unpaired surrogate is no text
    return value


@pytest.mark.slow
@needs_cc
class TestReader:
    @settings(suppress_health_check=QUIET, deadline=None, max_examples=300)
    @given(VALUES, st.booleans(), st.sampled_from([None, (",", ":"), (" ,\t", "\r: ")]))
    def test_what_python_writes_is_read(self, reader, value, ascii_only, separators):
        line = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
        expected = understood(value) if depth(value) <= 8 else "refused"
        assert reader(line.encode()) == expected

    @settings(suppress_health_check=QUIET, deadline=None, max_examples=600)
    @given(VALUES, st.data())
    def test_damaged_lines_are_read_as_python_reads_them(self, reader, value, data):
        line = json.dumps(value)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(line)))
            piece = data.draw(st.text('{}[]",:\\u0d8c1e+-.tfn ', max_size=3))
            line = line[:at] + piece + line[at + data.draw(st.integers(0, 2)) :]
        try:
            expected = understood(strict(line))
        except (ValueError, RecursionError):
            expected = "refused"
        assert reader(line.encode()) == expected

    @settings(suppress_health_check=QUIET, deadline=None, max_examples=300)
    @given(st.binary(max_size=60))
    def test_any_bytes_at_all(self, reader, line):
        reader(line.replace(b"\n", b"").replace(b"\0", b""))

    @pytest.mark.parametrize(
        "line",
        [
            "", "[", "[1", "[1,", "[1,]", "[,1]", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,}', "{1:2}", "01", "-", "1.",
            ".5", "1e", "+1", "0x10", "NaN", "Infinity", "tru", "nul", "nulls", "'a'", '"a', '"\\x"', '"\\u12"', '"\t"',
            '"\\ud800"', '"\\ud800\\u0041"', '"\\udc00"', '"\\u0000"', '{"a":1,"a":2}', "1 2", "[" * 9 + "]" * 9,
        ],
    )  # fmt: skip
    def test_refused(self, reader, line):
        assert reader(line.encode()) == "refused"

    def test_as_deep_as_allowed(self, reader):
        assert reader(b"[" * 8 + b"]" * 8) == "[" * 8 + "]" * 8

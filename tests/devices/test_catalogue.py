"""The shipped profiles are complete, consistent and sourced; a wrong profile is refused in one sentence."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path

import pytest

from toolchain.core.errors import ConfigError
from toolchain.devices.catalogue import known_targets, load_target, profile_folder
from toolchain.formats.target import Target

PROFILES = sorted(profile_folder().glob("*.toml"))
NAMES = {
    "android-arm64-dotprod", "android-arm64-i8mm", "intel-n100", "ios-arm64", "jetson-orin-nano-cpu", "raspberry-pi-4",
    "raspberry-pi-5", "raspberry-pi-zero-2w", "rk3588", "x86-avx2", "x86-vnni",
}  # fmt: skip

# Lines that state no fact: the profile's own identity and the brackets of a list.
IDENTITY = re.compile(r"(schema_version|name|title) = |cores = \[$|\]$|\[[a-z0-9_.]+\]$")
FACT = re.compile(r".+,?  # (?P<kind>source|unverified|choice): (?P<what>\S.+)$")
CHOSEN = {"threads", "version", "formats"}
CHOSEN_TABLES = {"runtime.session_options", "budget"}


def test_every_promised_profile_is_shipped():
    assert {p.stem for p in PROFILES} == NAMES
    assert known_targets() == ["host", *sorted(NAMES)]


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_shipped_profile_loads_under_its_own_name(path):
    target = load_target(path.stem)
    assert target.name == path.stem
    assert target == load_target(str(path))


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_survives_being_written_as_toml(path, tmp_path):
    target = load_target(path.stem)
    (tmp_path / "again.toml").write_text(target.to_toml())
    assert Target.load(tmp_path / "again.toml") == target


def test_a_profile_with_everything_in_it_survives_too(tmp_path):
    odd = {"title": 'a "board" of 2024 \\ é', "budget": {"size_mib": 0.5}}
    odd["runtime"] = {"threads": 1, "session_options": {"session.intra_op.allow_spinning": "0"}}
    target = Target.parse(load_target("rk3588").model_dump(mode="json") | odd)
    (tmp_path / "odd.toml").write_text(target.to_toml())
    assert Target.load(tmp_path / "odd.toml") == target


@pytest.mark.parametrize(("given", "name"), [("My Board", "my-board"), ("pi.local", "pi.local"), ("__", "device")])
def test_names_are_made_of_any_words(given, name):
    assert Target.parse(load_target("rk3588").renamed(given).model_dump(mode="json")).name == name


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_every_fact_says_where_it_comes_from(path):
    table = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            table = line.strip("[]")
        if not line.strip() or line.startswith("#") or IDENTITY.match(line):
            continue
        fact = FACT.match(line)
        assert fact, f"no '# source:', '# unverified:' or '# choice:' behind: {line}"
        if fact["kind"] == "choice":
            key = line.split(" = ")[0]
            assert key in CHOSEN or table in CHOSEN_TABLES, f"a fact, not a choice: {line}"
        assert len(line) <= 120


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_shipped_profile_says_what_a_build_needs(path):
    """Fields that the schema leaves open and that every shipped profile states."""
    data = tomllib.loads(path.read_text())
    assert {"runtime", "int8", "package", "channel_multiple"} <= set(data)
    assert "saturates" in data["int8"]
    target = Target.load(path)
    big = max(target.cores, key=lambda c: c.clock_ghz)
    assert target.cores[0] == big, "the first cluster is the biggest: `cache` speaks of it"
    assert target.runtime.threads >= big.count
    assert target.runtime.threads < sum(c.count for c in target.cores) or len(target.cores) == 1


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_shipped_profile_agrees_with_onnxruntime(path):
    """Consequences of the instruction set, from onnxruntime's mlas (convsym.cpp, platform.cpp)."""
    target = Target.load(path)
    arm = target.architecture == "aarch64"
    assert target.int8.activations == ("s8" if arm else "u8")
    assert target.package.ort_platform == ("arm" if arm else "amd64")
    assert target.channel_multiple == (8 if arm and "dotprod" not in target.features else 16)
    if arm and "fp16" not in target.features:  # Armv8.0: the 1.21.0 wheel stops with an illegal instruction
        assert "!=1.21" in target.runtime.version


def test_session_options_are_known_to_the_installed_onnxruntime():
    """A misspelt option is ignored silently by onnxruntime, so look for it in the library itself."""
    onnxruntime = pytest.importorskip("onnxruntime")

    library = next((Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*")).read_bytes()
    options = {key for path in PROFILES for key in Target.load(path).runtime.session_options}
    assert options, "no shipped profile sets an option any more: drop this test"
    assert [key for key in options if key.encode() + b"\0" not in library] == []
    assert b"session.no_such_option\0" not in library


def test_facts_of_three_devices_hold():
    """Compare with facts from the vendors' pages, written here independently of the files."""
    pi4, pi5, n100 = (load_target(name) for name in ("raspberry-pi-4", "raspberry-pi-5", "intel-n100"))
    assert pi4.features == ("asimd",)
    assert "dotprod" in pi5.features
    assert "i8mm" not in pi5.features
    assert (pi5.cores[0].core, pi5.cores[0].count, pi5.cores[0].clock_ghz) == ("cortex-a76", 4, 2.4)
    assert (pi5.cache.l2_kib, pi5.cache.l3_kib) == (512, 2048)
    assert n100.has_vnni
    assert not n100.int8.saturates
    assert load_target("x86-avx2").int8.saturates


# ------------------------------------------------------------------------------------------- strictness

GOOD = {
    "name": "board",
    "title": "A board",
    "architecture": "aarch64",
    "features": ["asimd"],
    "cores": [{"core": "cortex-a53", "count": 4, "clock_ghz": 1.0}],
    "channel_multiple": 8,
    "runtime": {"threads": 4},
    "int8": {"activations": "s8"},
    "package": {"ort_platform": "arm"},
}
X86 = {"architecture": "x86_64", "package": {"ort_platform": "amd64"}}


def changed(**changes: object) -> dict[str, object]:
    return {**copy.deepcopy(GOOD), **changes}


def test_the_smallest_profile_is_accepted():
    target = Target.parse(GOOD)
    assert target.package.formats == ("onnx", "ort")
    assert target.budget.latency_ms is None
    assert not target.int8.saturates


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (changed(feature=["asimd"]), "feature: unknown key; did you mean 'features'?"),
        (changed(runtime={"thread": 4}), "runtime.thread: unknown key; did you mean 'threads'?"),
        (
            changed(cores=[{"core": "a", "count": 4, "clock": 1.0}]),
            "cores.0.clock: unknown key; did you mean 'clock_ghz'?",
        ),
        (
            changed(runtime={"threads": "4"}),
            'runtime.threads: is "4"; give a whole number',
        ),
        (
            changed(channel_multiple=0),
            "channel_multiple: is 0; give 1 or more",
        ),
        (changed(features=["asimd", "dotproduct"]), "features.1: 'dotproduct' is not allowed; did you mean 'dotprod'?"),
        (changed(architecture="arm64"), "architecture: 'arm64' is not allowed; did you mean 'aarch64'?"),
        (changed(features=["avx2"]), "target profile: feature 'avx2' does not exist on aarch64; correct the value"),
        (
            changed(**X86, features=["avx2", "dotprod"]),
            "target profile: feature 'dotprod' does not exist on x86_64; correct the value",
        ),
        (changed(runtime={"threads": 5}), "target profile: runtime.threads is 5 on 4 cores; correct the value"),
        (
            changed(int8={"activations": "s8", "saturates": True}),
            "target profile: int8.saturates is true, but only x86 without VNNI saturates; correct the value",
        ),
        (
            changed(**X86, features=["avx2", "avx-vnni"], int8={"activations": "u8", "saturates": True}),
            "target profile: int8.saturates is true, but only x86 without VNNI saturates; correct the value",
        ),
        (
            changed(**X86, features=["avx2"], int8={"activations": "u8"}),
            "target profile: int8.saturates is false, but x86 without VNNI adds products in saturating int16;"
            " correct the value",
        ),
        (changed(cores=[]), "cores: is []; give a list with at least 1 entry"),
        (changed(budget={"latency_ms": 0}), "budget.latency_ms: is 0; give a number above 0"),
    ],
)
def test_a_wrong_profile_is_one_sentence(data, sentence):
    with pytest.raises(ConfigError) as caught:
        Target.parse(data)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["Board", "my board", "", "-x"])
def test_a_name_is_lower_case_without_blanks(name):
    with pytest.raises(ConfigError, match=r"^name: '.*' is not made of lower-case letters"):
        Target.parse(changed(name=name))


def test_the_fault_names_the_file(tmp_path):
    text = (profile_folder() / "raspberry-pi-5.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("threads = 4", "threads = 8"))
    with pytest.raises(ConfigError, match=r"mine\.toml: runtime\.threads is 8 on 4 cores"):
        load_target(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("raspberry-pi5", "did you mean 'raspberry-pi-5'?"),
        ("rk3568", "did you mean 'rk3588'?"),
        ("hots", "did you mean 'host'?"),
    ],
)
def test_an_unknown_target_has_a_near_match(name, hint):
    with pytest.raises(ConfigError) as caught:
        load_target(name)
    assert str(caught.value) == f"unknown target {name!r}; {hint}"


def test_an_unknown_target_far_from_all_lists_them():
    with pytest.raises(ConfigError, match=r"choose one of: android-arm64-dotprod, .*x86-vnni$"):
        load_target("toaster")


def test_a_profile_by_path(tmp_path):
    with pytest.raises(ConfigError, match="no such target profile file; check the path"):
        load_target(str(tmp_path / "none.toml"))
    Target.parse(GOOD).save(tmp_path / "board.json")
    assert load_target(str(tmp_path / "board.json")) == Target.parse(GOOD)


# -------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "target-profile.md"


def field_names(schema: dict, definitions: dict, prefix: str = "") -> set[str]:
    """Dotted names of all fields of a JSON Schema, those of lists' items included."""
    names = set()
    for name, field in schema["properties"].items():
        node = field.get("items", field)
        names.add(prefix + name)
        if "$ref" in node:
            names |= field_names(definitions[node["$ref"].rsplit("/", 1)[1]], definitions, f"{prefix}{name}.")
    return names


def test_the_page_explains_every_field():
    schema = Target.model_json_schema()
    sections = {"cache", "runtime", "int8", "package", "budget"}
    explained = {
        name
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z0-9_.]+)`", line.split(" | ")[0])
    }
    assert field_names(schema, schema["$defs"]) - sections - explained == set()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_page_lists_every_profile_as_it_is(name):
    target = load_target(name)
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-3:] == [str(target.runtime.threads), target.int8.activations, str(target.channel_multiple)]
    assert ("dotprod" in row) == ("dotprod" in target.features)
    assert ("VNNI" in cells[-4]) == target.has_vnni

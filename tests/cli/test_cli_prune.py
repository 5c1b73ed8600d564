"""``prune``, ``inspect --groups`` and ``export --prune`` from the command line."""

import json
import re

import onnx
import pytest

PRUNE = "prune net.onnx -c samples.npz -o small.onnx"


def parameters(path):
    return sum(len(t.raw_data) // 4 or len(t.float_data) for t in onnx.load(path).graph.initializer)


def test_a_share_of_the_work_stays(toolchain, workplace, always_faster):
    done = toolchain(f"{PRUNE} --keep 0.7 --max-drop off --json")
    assert done.code == 0, done.err
    found = done.result
    assert found["macs"][1] <= 0.7 * found["macs"][0]
    assert found["proof"]["identical"]
    assert parameters("small.onnx") < parameters("net.onnx")


def test_a_reader_sees_what_was_cut(toolchain, workplace, always_faster):
    done = toolchain(f"{PRUNE} --keep 0.7 --max-drop off")
    assert done.code == 0, done.err
    for words in (
        "channels",
        "computes what the original does",
        "multiply-accumulates",
        "fidelity",
        "agreement",
    ):
        assert words in done.out


def test_zeros_are_for_size_alone(toolchain, workplace):
    done = toolchain(f"{PRUNE} --sparsity 2:4 --max-drop off")
    assert done.code == 0, done.err
    assert re.search(r"4\d% of the weights are zero", done.out)
    assert "no faster" in done.out.replace("\n", " ")


def test_a_goal_that_costs_too_much_is_refused_with_the_curve(toolchain, workplace, always_faster):
    """The net has random weights, so nothing in it can be spared."""
    done = toolchain(f"{PRUNE} --keep 0.5")
    assert done.code == 1
    *_, sentence = done.err.splitlines()
    assert sentence.startswith("error: tiny: keeping 0.50 of the multiply-accumulates costs too much: ")
    assert sentence.endswith("or accept the loss with --max-drop")
    assert "what a smaller model gains and loses" in done.err
    assert done.out == ""
    assert not (workplace / "small.onnx").exists()


def test_a_program_reads_the_curve(toolchain, workplace, always_faster):
    done = toolchain(f"{PRUNE} --keep 0.5 --json")
    assert done.code == 1
    assert done.result["output"] is None
    factors = [point["factor"] for point in done.result["curve"]]
    assert factors == sorted(factors)
    assert done.result["curve"][-1]["fault"] in done.result["error"]


def test_a_loss_that_is_accepted_is_told(toolchain, workplace, always_faster):
    done = toolchain(f"{PRUNE} --keep 0.5 --max-drop off")
    assert done.code == 0, done.err
    assert "LOST: " in done.err


def test_zeros_that_cost_too_much_are_refused(toolchain, workplace):
    done = toolchain(f"{PRUNE} --sparsity 0.95")
    assert done.code == 1
    assert done.sentence.startswith("--sparsity: 95% zeros cost too much: ")
    assert not (workplace / "small.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "prune: no goal is given; give one of --speedup"),
        ("--speedup 1.2 --sparsity 0.5", "prune: a goal and a sparsity are given"),
        ("--speedup 0.5", "--speedup: is 0.5; give a number above 1"),
        (
            "--speedup 1.2 --keep 0.5",
            "--speedup, --latency-ms, --keep: speedup, latency_ms and keep exclude each other",
        ),
        ("--keep 0.5 --criterion best", "--criterion: 'best' is not allowed; choose one of"),
        ("--sparsity 5", "--sparsity: '5' is neither a share nor a pattern"),
        ("--keep 0.5 --max-drop -1", "--max-drop: is -1"),
        ("--keep 0.5 --target raspberry-pi-6", "unknown target 'raspberry-pi-6'"),
    ],
)
def test_bad_goals_are_told_before_anything_slow(toolchain, workplace, arguments, said):
    done = toolchain(f"{PRUNE} {arguments}")
    assert done.code == 2
    assert done.sentence.startswith(said)
    assert not (workplace / "small.onnx").exists()


def test_groups_are_listed_with_the_reason_of_those_that_stay(toolchain, workplace):
    done = toolchain("inspect net.onnx --groups")
    assert done.code == 0, done.err
    assert "it is an input of the model" in done.out
    assert "2 of 4 groups can be pruned" in done.out
    listed = toolchain("inspect net.onnx --groups --json").result
    assert [group["size"] for group in listed["groups"] if group["free"]] == [8, 16]


@pytest.mark.slow
def test_export_prunes_first(toolchain, workplace, always_faster):
    done = toolchain(
        "export net.onnx -t host -c samples.npz --recipe fast.toml --prune 1.05 --max-drop off -o out --json"
    )
    assert done.code == 0, done.err
    variants = [row["variant"] for row in done.result["results"]["measurements"]]
    manifest = json.loads((workplace / "out/host/manifest.json").read_text())
    assert manifest["recipe"]["prune"]["speedup"] == 1.05
    assert variants == ["fp32", "pruned", "pruned+int8"]
    assert any("pruned before int8" in note for note in manifest["notes"])

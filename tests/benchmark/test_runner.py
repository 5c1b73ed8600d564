"""The runner's own parts (processors, median), and rounds of processes on a scripted device."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from recorded import ProgressLog

from toolchain.benchmark import runner
from toolchain.benchmark.job import BenchJob
from toolchain.benchmark.rounds import MIN_SUSTAINED_WINDOWS, Extras, measure
from toolchain.core.errors import DeviceError
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Reading


def machine(root: Path, name: str, speeds: list[int]) -> Path:
    for cpu, speed in enumerate(speeds):
        file = root / f"sys/devices/system/cpu/cpu{cpu}" / name
        file.parent.mkdir(parents=True)
        file.write_text(f"{speed}\n")
    return root


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_big_and_little_cores(tmp_path, name):
    root = machine(tmp_path, name, [446, 446, 446, 446, 1024, 1024])  # an RK3399
    assert runner.find_cpus("big", root) == [4, 5]
    assert runner.find_cpus("little", root) == [0, 1, 2, 3]


def test_capacity_before_clock(tmp_path):
    """Slow cores can have the higher clock; the kernel's capacity shows which are faster."""
    machine(tmp_path, "cpu_capacity", [400, 1024])
    for cpu, clock in enumerate((2_000_000, 1_800_000)):
        file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"
        file.parent.mkdir()
        file.write_text(str(clock))
    assert runner.find_cpus("big", tmp_path) == [1]


@pytest.mark.parametrize(("text", "cpus"), [("0-3,6", [0, 1, 2, 3, 6]), ("2", [2]), ("3,1,1", [1, 3])])
def test_lists_of_processors(tmp_path, text, cpus):
    assert runner.find_cpus(text, tmp_path) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "0.5"])
def test_what_is_no_list(tmp_path, text):
    with pytest.raises(ValueError, match="names no processors"):
        runner.find_cpus(text, tmp_path)


def test_one_kind_of_core_and_processors_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="one kind of core only"):
        runner.find_cpus("big", machine(tmp_path, "cpu_capacity", [1024, 1024]))
    with pytest.raises(ValueError, match="not all among this machine's processors"):
        runner.find_cpus("100000", Path("/"))
    assert runner.find_cpus(str(min(os.sched_getaffinity(0))), Path("/")) == [min(os.sched_getaffinity(0))]


@pytest.mark.parametrize("values", [[3.0], [4.0, 1.0], [9.0, 1.0, 5.0], [1.0, 2.0, 3.0, 10.0]])
def test_the_median(values):
    assert runner.middle(values) == statistics.median(values)


class ScriptedRunner:
    """Gives fixed answers, and keeps a list of its commands; an inference takes `run_s` on the device's clock."""

    def __init__(self, device: ScriptedDevice, name: str) -> None:
        self.device, self.asked, self.name, self.cpus = device, device.asked, name, device.cpus

    def __enter__(self) -> ScriptedRunner:
        return self

    def __exit__(self, *raised: object) -> None:
        self.asked.append(f"end {self.name}")

    def started(self) -> dict[str, Any]:
        self.asked.append(f"start {self.name}")
        return {"onnxruntime": "1", "baseline_bytes": 1} | ({"cpus": self.cpus} if self.cpus else {})

    def ask(self, do: str, numbers: dict[str, float] | None = None) -> dict[str, Any]:
        if do == "round":
            self.asked.append(self.name)
            self.device.now_s += max(self.device.run_s, numbers["seconds"] if self.device.run_s else 0.0)
        return {
            "load": {"load_ms": 1.0, "peak_load_bytes": 2, "peak_reset": True},
            "warmup": {"first_ms": self.device.first_ms, "runs": 1, "settled": True},
            "round": {"samples_ms": [1.0, 2.0], "cpu_ms": [1.0, 1.0] if self.name == "a" else []},
            "memory": {"peak_run_bytes": 3, "pss_run_bytes": None},
            "profile": {"operators": [{"node": "n", "op": "Conv", "median_us": 1.5}]},
        }[do]


class ScriptedDevice:
    """Opens scripted runners, and reads the given clocks, one after the other.

    run_s: the time that a runner takes for one inference; 0 lets the clock stand still.
    first_ms: the time of the first inference, as the runners report it.
    """

    def __init__(self, cpus: list[int], clocks: list[float], run_s: float = 0.0, first_ms: float = 1.0) -> None:
        self.asked: list[str] = []
        self.first_ms = first_ms
        self.cpus, self.clocks = cpus, clocks
        self.run_s, self.now_s = run_s, 100.0

    def clock(self) -> float:
        return self.now_s

    def read_conditions(self) -> Reading:
        return Reading(clock_mhz=self.clocks.pop(0) if self.clocks else None, governor="performance", throttled=0)

    def open(self, job: BenchJob) -> ScriptedRunner:
        return ScriptedRunner(self, job.path.stem)


def jobs(cpus: str | None = None) -> list[BenchJob]:
    return [BenchJob(Path(f"{name}.onnx"), cpus=cpus) for name in "ab"]


def test_rounds_go_there_and_back_in_fresh_processes():
    device = ScriptedDevice([], [1000.0, 1800.0, 1700.0])
    settings = Bench(warmup_s=0, min_time_s=0, min_runs=5, rounds=5, processes=2)
    found, around = measure(device, jobs(), settings, Extras(profile_runs=1), clock=device.clock)
    assert [said for said in device.asked if "start" not in said] == [
        *"abbaab", "end b", "end a", *"baab", "end b", "end a",
    ]  # fmt: skip
    a, b = found
    assert (a.latency.processes, a.latency.rounds, a.latency.warmup_runs) == (2, (0, 2, 4, 6, 8), 2)
    assert (len(a.latency.cpu_ms), b.latency.cpu_ms) == (10, ())
    assert a.operators[0].op == "Conv"
    assert (around.clock_mhz_before, around.during[1].clock_mhz, around.governor) == (1800, 1700, "performance")
    assert (around.throttled_before, around.throttled_after) == (0, 0)
    assert len(around.during) == 4  # when processes have warmed up and when they are done


@pytest.mark.parametrize(("first_ms", "rounds"), [(100.0, 30), (120.0, 25), (1000.0, 20)])
def test_slow_models_have_fewer_rounds(first_ms, rounds):
    device = ScriptedDevice([], [], first_ms=first_ms)
    settings = Bench(warmup_s=0, min_time_s=3.0, min_runs=20, rounds=30, processes=3)
    found, _ = measure(device, jobs(), settings, Extras())
    assert [len(one.latency.rounds) for one in found] == [rounds, rounds]
    assert [one.latency.processes for one in found] == [3, 3]


def test_how_long_the_rounds_took_is_logged(caplog):
    settings = Bench(warmup_s=0, min_time_s=0, min_runs=3, rounds=3)
    device = ScriptedDevice([], [], run_s=0.5)
    with caplog.at_level("INFO", "toolchain.benchmark"):
        measure(device, jobs(), settings, Extras(), clock=device.clock)
    assert caplog.messages == ["3 rounds of 2 models took 3.0 s"]


def test_a_runner_that_cannot_be_bound_is_refused():
    with pytest.raises(DeviceError, match="processors big: the runner there cannot be bound to processors"):
        measure(ScriptedDevice([], []), jobs("big"), Bench(), Extras())
    settings = Bench(warmup_s=0, min_time_s=0, min_runs=3, rounds=1)
    found, _ = measure(ScriptedDevice([2, 3], []), jobs("2-3"), settings, Extras())
    assert found[0].latency.cpus == (2, 3)


def test_the_bar_counts_rounds_times_models():
    device, log = ScriptedDevice([], []), ProgressLog()
    settings = Bench(warmup_s=0, min_time_s=0, min_runs=5, rounds=5, processes=2)
    measure(device, jobs(), settings, Extras(profile_runs=1), log)
    assert log.counts("loading and warming up") == [(0, 2), (1, 2)]
    # Reported after each round, and again when the second batch of processes has started.
    assert [done for done, _ in log.counts("timing")] == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]
    assert {total for _, total in log.counts("timing")} == {10}
    assert log.counts("profiling operators") == [(0, 2), (1, 2)]
    assert log.stages.index("profiling operators") > log.stages.index("timing")


def test_conditions_are_read_once_a_second():
    settings = Bench(warmup_s=0, min_time_s=0, min_runs=10, rounds=10, processes=1)
    device = ScriptedDevice([], [], run_s=0.3)
    _, around = measure(device, jobs()[:1], settings, Extras(), clock=device.clock)
    assert [reading.at_s for reading in around.during] == pytest.approx([0.0, 1.2, 2.4, 3.0])


@pytest.mark.parametrize(("seconds", "window_s"), [(6.0, 0.5), (120.0, 5.0)])
def test_a_sustained_run_is_cut_into_windows_and_counts_seconds(seconds, window_s):
    settings = Bench(warmup_s=0, min_time_s=0, min_runs=3, rounds=1)
    device, log = ScriptedDevice([], [], run_s=0.001), ProgressLog()
    extras = Extras(sustained_s=seconds)
    ((measured,), _) = measure(device, jobs()[:1], settings, extras, log, clock=device.clock)
    ends = [window.at_s for window in measured.sustained]
    assert len(ends) >= MIN_SUSTAINED_WINDOWS
    assert ends == pytest.approx([window_s * (i + 1) for i in range(len(ends))])
    assert ends[-1] == seconds
    assert [window.p50_ms for window in measured.sustained] == [1.5] * len(ends)
    counts = log.counts("sustained run")
    assert counts == [(int(window_s * i), seconds) for i in range(len(ends))]

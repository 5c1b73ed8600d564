"""Records of a benchmark: each report of progress, and each command that a runner is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from toolchain.benchmark.job import BenchJob
from toolchain.benchmark.place import Place, Runner, TimingDevice
from toolchain.core.progress import Progress


@dataclass
class ProgressLog:
    """A `Progress` that keeps its calls."""

    reports: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        self.reports.append((what, done, total))

    @property
    def stages(self) -> list[str]:
        return [what for what, _, _ in self.reports]

    def counts(self, stage: str) -> list[tuple[int, int]]:
        """Steps done, and their total, at each report of a stage."""
        return [(done, total) for what, done, total in self.reports if what == stage]


@dataclass
class RecordedRunner:
    runner: Runner
    name: str
    commands: list[tuple[str, str]]

    def __enter__(self) -> RecordedRunner:
        self.runner.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.runner.__exit__(*raised)

    def started(self) -> dict[str, Any]:
        self.commands.append((self.name, "start"))
        return self.runner.started()

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        self.commands.append((self.name, do))
        return self.runner.ask(do, numbers)


@dataclass
class RecordedDevice:
    device: TimingDevice
    commands: list[tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def open(self, job: BenchJob) -> RecordedRunner:
        return RecordedRunner(self.device.open(job), job.path.stem, self.commands)


@dataclass
class RecordedPlace:
    """A place that times models; `commands`: the model's stem and the command, for each one sent to a runner."""

    place: Place
    commands: list[tuple[str, str]] = field(default_factory=list)
    answering: None = None
    profiles_operators: bool = True

    @property
    def name(self) -> str:
        return self.place.name

    @contextmanager
    def timing(self, progress: Progress) -> Iterator[RecordedDevice]:
        assert self.place.timing is not None
        with self.place.timing(progress) as device:
            yield RecordedDevice(device, self.commands)

    def order(self, command: str) -> list[str]:
        """Stems of the models, in the order in which they were sent a command."""
        return [name for name, sent in self.commands if sent == command]

"""What the files of runs and studies hold; `reading` refuses what has another shape.

Keys that a schema does not name are kept and never used. What an earlier version did not write is
`NotRequired`, which only evaluated annotations can say: this module does without the future import.
"""

from typing import Any, NotRequired, TypedDict

#: Task -> metric -> value; null where it is not a number.
MetricTable = dict[str, dict[str, float | None]]


class _Data(TypedDict):
    name: str


class _Training(TypedDict):
    evaluate_ema: NotRequired[bool]


class StoredConfig(TypedDict):
    """What is read of `config.toml` without resolving it."""

    method: str
    seed: int
    tasks: list[str]
    data: _Data
    training: NotRequired[_Training]


class Provenance(TypedDict):
    """`run.json`."""

    id: NotRequired[str]
    status: NotRequired[str]
    reason: NotRequired[str | None]
    device: NotRequired[str]
    argv: NotRequired[list[str]]
    plugins: NotRequired[dict[str, str]]
    origins: NotRequired[dict[str, str]]


class _Final(TypedDict):
    val: MetricTable


class _Best(TypedDict):
    epoch: int | None
    chosen_on: NotRequired[str | None]
    val: NotRequired[MetricTable]


class _Parameters(TypedDict):
    total: int
    modules: NotRequired[dict[str, int]]
    components: NotRequired[dict[str, int]]


class Summary(TypedDict):
    """`summary.json`."""

    final: _Final
    averaged_over: int
    best: _Best
    constants: dict[str, MetricTable]
    higher_is_better: dict[str, dict[str, bool]]
    units: NotRequired[dict[str, str]]
    parameters: _Parameters
    epochs: int
    steps: int
    seconds: float
    seconds_per_step: NotRequired[float | None]
    peak_memory: NotRequired[float | None]
    skipped_steps: NotRequired[int]
    skipped_samples: NotRequired[list[str]]


class MetricsLine(TypedDict):
    """A line of `metrics.jsonl`."""

    step: int
    epoch: int
    split: str
    task: str | None
    metric: str
    value: float | None
    seconds: float


class _SampleEntry(TypedDict):
    key: str
    pictures: dict[str, str]
    scales: dict[str, tuple[float, float]]


class _TaskEntry(TypedDict):
    classes: dict[str, str]
    unit: str


class SampleIndex(TypedDict):
    """`report/samples/index.json`."""

    samples: list[_SampleEntry]
    tasks: dict[str, _TaskEntry]


class _CellEntry(TypedDict):
    variant: str
    seed: int
    group: list[str] | None
    location: str
    status: str
    reason: str | None


class StudyFile(TypedDict):
    """`study.json`."""

    name: str
    baseline: str
    delta_m: str
    epoch: str
    targets: list[str]
    notes: list[str]
    threads: int
    cells: list[_CellEntry]


class StopRequest(TypedDict):
    """`stop.json`."""

    reason: str


class _Random(TypedDict):
    balancing: Any


class _Progress(TypedDict):
    epoch: int
    step: int
    done: int
    seconds: float
    skipped: int
    skipped_in_a_row: int
    losses: dict[str, list[float]]
    window: dict[str, dict[str, list[float]]]
    stopping: NotRequired[dict[str, Any]]


class LastCheckpoint(TypedDict):
    """The tree of `checkpoints/last.safetensors`; what is of components is theirs to read."""

    learner: dict[str, Any]
    optimizer: dict[str, Any]
    plans: dict[str, Any]
    progress: _Progress
    random: _Random
    ranks: list[dict[str, Any]]
    metrics_length: int
    threads: int
    average: NotRequired[dict[str, Any]]
    teachers: NotRequired[dict[str, Any]]
    config: NotRequired[dict[str, Any]]

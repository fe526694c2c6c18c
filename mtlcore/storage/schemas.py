"""What the files of runs and studies hold; `reading` refuses what has another shape.

Keys that a schema does not name are kept and never used. What an earlier version did not write is
`NotRequired`, which only evaluated annotations can say: this module does without the future import.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from mtlcore.ranges import Natural, Range

#: Task -> metric -> value; null where it is not a number.
MetricTable = dict[str, dict[str, float | None]]


#: Of a run; in a thousand years there are 3e10.
_Seconds = Annotated[float, Range(ge=0, le=3e10)]


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
    model: NotRequired[dict[str, Any]]
    losses: NotRequired[dict[str, Any]]
    metrics: NotRequired[dict[str, Any]]
    balancer: NotRequired[dict[str, Any]]
    episodes: NotRequired[dict[str, Any]]
    optimizer: NotRequired[dict[str, Any]]
    initial: NotRequired[dict[str, Any]]
    teachers: NotRequired[dict[str, Any]]
    loggers: NotRequired[list[dict[str, Any]]]


class Provenance(TypedDict):
    """`run.json`."""

    id: NotRequired[str]
    status: NotRequired[str]
    reason: NotRequired[str | None]
    device: NotRequired[str]
    argv: NotRequired[list[str]]
    plugins: NotRequired[dict[str, str]]
    origins: NotRequired[dict[str, str]]


class _Best(TypedDict):
    epoch: int | None
    chosen_on: str | None
    chosen_by: NotRequired[list[str] | None]
    val: MetricTable


class _Parameters(TypedDict):
    total: Natural
    trainable: NotRequired[Natural]
    modules: NotRequired[dict[str, Natural]]
    components: NotRequired[dict[str, Natural]]


class Summary(TypedDict):
    """`summary.json`."""

    final: dict[str, MetricTable]
    final_split: str
    averaged_over: Natural
    best: _Best
    constants: dict[str, MetricTable]
    higher_is_better: dict[str, dict[str, bool]]
    units: NotRequired[dict[str, str]]
    parameters: _Parameters
    flops: NotRequired[Natural]
    epochs: Natural
    steps: Natural
    seconds: _Seconds
    seconds_per_step: NotRequired[_Seconds | None]
    stalled_seconds: NotRequired[_Seconds]
    peak_memory: NotRequired[Annotated[float, Range(ge=0)] | None]
    skipped_steps: NotRequired[Natural]
    skipped_samples: NotRequired[list[str]]


class MetricsLine(TypedDict):
    """A line of `metrics.jsonl`."""

    step: Natural
    epoch: Natural
    split: str
    task: str | None
    metric: str
    value: float | None
    seconds: _Seconds


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


class _TrialEntry(TypedDict):
    name: str
    parameters: dict[str, Any]


class _SearchEntry(TypedDict):
    objectives: list[str]
    trials: list[_TrialEntry]


class StudyFile(TypedDict):
    """`study.json`."""

    name: str
    baseline: str
    delta_m: str
    epoch: str
    targets: list[str]
    notes: list[str]
    threads: Annotated[int, Range(ge=1)]
    cells: list[_CellEntry]
    search: NotRequired[_SearchEntry | None]


#: Task -> the values of its metrics, in the order of the file's `metrics`.
MetricRow = dict[str, list[float | None]]


class KeptRun(TypedDict):
    """A run in a file of kept results."""

    seed: Natural
    method: str
    location: str
    tasks: list[str]
    last: MetricRow
    best: MetricRow | None
    best_epoch: Natural | None
    chosen_on: str | None
    averaged_over: Natural
    parameters: Natural
    seconds: _Seconds
    seconds_per_step: _Seconds | None
    stalled_seconds: _Seconds
    peak_memory: Annotated[float, Range(ge=0)] | None
    curves: dict[str, list[tuple[Natural, _Seconds, float | None]]]


class _KeptFailure(TypedDict):
    seed: Natural
    group: list[str] | None
    location: str
    reason: str
    pruned: bool


class KeptVariant(TypedDict):
    """A variant in a file of kept results."""

    name: str
    groups: list[list[str]] | None
    runs: list[KeptRun]
    failed: list[_KeptFailure]


class KeptResults(TypedDict):
    """`values.json` of a study, or a copy of it."""

    format: Natural
    title: str
    baseline: str
    delta_m: str
    epoch: Literal["last", "best"]
    targets: list[str]
    notes: list[str]
    metrics: dict[str, dict[str, bool]]
    units: dict[str, str]
    variants: list[KeptVariant]
    search: _SearchEntry | None


class StopRequest(TypedDict):
    """`stop.json`."""

    reason: str


class _Random(TypedDict):
    balancing: Any


class _Progress(TypedDict):
    epoch: Natural
    step: Natural
    done: Natural
    seconds: _Seconds
    skipped: Natural
    skipped_in_a_row: Natural
    losses: dict[str, list[float]]
    window: dict[str, dict[str, list[float]]]
    stopping: NotRequired[dict[str, Any]]
    step_times: NotRequired[list[tuple[float, float, float]]]


class _Asked(TypedDict):
    values: dict[str, Natural]
    reached: dict[str, dict[str, int]]
    evaluations: list[str]


class _Length(TypedDict):
    steps: Natural
    asked: _Asked


class LastCheckpoint(TypedDict):
    """The tree of `checkpoints/last.safetensors`; what is of components is theirs to read."""

    learner: dict[str, Any]
    optimizer: dict[str, Any]
    plans: dict[str, Any]
    progress: _Progress
    random: _Random
    ranks: list[dict[str, Any]]
    metrics_length: Natural
    threads: Natural
    length: NotRequired[_Length]
    average: NotRequired[dict[str, Any]]
    teachers: NotRequired[dict[str, Any]]
    config: NotRequired[dict[str, Any]]

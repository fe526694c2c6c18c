"""Settings: what a signature and a docstring say, and what users may give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
import pytest

from mtlcore import Length, Range
from mtlcore.errors import MtlError
from mtlcore.plugins import REQUIRED, expanded, settings_of, structure
from mtlcore.ranges import Count

if TYPE_CHECKING:
    from nowhere import Task


class Colour(Enum):
    RED = "red"


@attrs.frozen
class Schedule:
    """How the rate falls.

    Args:
        name: Its shape.
        power: The exponent.
    """

    name: Literal["poly", "cosine"] = "poly"
    power: float = attrs.field(default=0.9, validator=attrs.validators.ge(0))
    steps: list[int] = attrs.field(factory=list)


class Base:
    """A base.

    Args:
        tasks: From the core.
        rate: The base's word for it.
        clip: Largest norm.
    """


class Balancer(Base):
    """Weighs.

    Args:
        tasks: From the core.
        rate (float): Step size, in units
            of the loss: see section 3.

            It may be zero.
        mode: How.

    Raises:
        ValueError: never
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        rate: float,
        clip: float | None = None,
        mode: Literal["a", "b"] = "a",
        schedule: Schedule | None = None,
        size: tuple[int, int] = (1, 2),
        weights: dict[str, float] | None = None,
        scale: float | Literal["auto"] = "auto",
        count: int = 1,
        on: bool = False,
        root: Path = Path(),
        colour: Colour = Colour.RED,
        names: Sequence[str] = (),
        free: Any = None,
        share: Annotated[float, Range(gt=0, le=1)] | None = None,
        bound: Annotated[float, Range(gt=0, le=math.inf)] = math.inf,
        sizes: Annotated[tuple[Count, ...], Length(ge=1)] = (1,),
        unannotated=3,
        **rest: int,
    ) -> None:
        """Make one.

        Args:
            clip: Hidden by nothing.
        """


def function(learner: Task, *, lr: float = 0.1, table: Mapping[str, list[int]] | None = None):
    """Make an optimizer.

    Args:
        lr: Learning rate.
    """


@attrs.define
class Record:
    """As an attrs class.

    Args:
        quorum: How many.
    """

    first: int
    quorum: float = attrs.field(default=0.5, kw_only=True)
    _hidden: int = attrs.field(factory=lambda: 7, kw_only=True)
    computed: int = attrs.field(kw_only=True)

    @computed.default
    def _(self):
        return self.first


def unresolvable(*, task: Task):
    """Its setting's type exists for checkers only."""


def by_name(target):
    return {setting.name: setting for setting in settings_of(target)}


def check(given, target=Balancer):
    problems = []
    if target is Balancer and "rate" not in given:
        given = {"rate": 1.0, **given}
    values = structure(target, given, "balancer", problems)
    return values, problems


def test_only_annotated_keyword_only_parameters_are_settings():
    found = by_name(Balancer)
    assert list(found)[:3] == ["rate", "clip", "mode"]
    assert not {"tasks", "unannotated", "rest"} & set(found)
    assert found["rate"].default is REQUIRED
    assert found["clip"].default is None
    assert list(by_name(function)) == ["lr", "table"]
    assert by_name(object) == {}


def test_attrs_classes_have_settings_too():
    found = by_name(Record)
    assert [(s.name, s.default) for s in found.values()] == [
        ("quorum", 0.5),
        ("hidden", 7),
        ("computed", ...),
    ]
    assert found["quorum"].meaning == "How many."
    assert structure(Record, {"quorum": 1, "hidden": 2}, "", []) == {"quorum": 1.0, "hidden": 2}


def test_an_annotation_that_cannot_be_resolved_is_the_authors_error():
    with pytest.raises(MtlError, match=r"unresolvable: annotation: .*Task"):
        settings_of(unresolvable)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rate", "float"),
        ("clip", "float | None"),
        ("mode", "'a' | 'b'"),
        ("schedule", "Schedule | None"),
        ("size", "tuple[int, int]"),
        ("weights", "dict[str, float] | None"),
        ("scale", "float | 'auto'"),
        ("names", "Sequence[str]"),
        ("free", "Any"),
        ("share", "float > 0 and <= 1 | None"),
        ("bound", "float > 0 or inf"),
        ("sizes", "tuple[int >= 1, ...] of length >= 1"),
    ],
)
def test_types_are_shown_as_people_read_them(name, shown):
    assert by_name(Balancer)[name].type == shown


def test_meanings_come_from_the_docstrings():
    found = by_name(Balancer)
    meaning = "Step size, in units of the loss: see section 3. It may be zero."
    assert found["rate"].meaning == meaning
    assert found["mode"].meaning == "How."
    assert found["clip"].meaning == "Hidden by nothing."
    assert found["count"].meaning == ""
    assert by_name(function)["lr"].meaning == "Learning rate."


def test_nested_records_are_expanded():
    found = {setting.name: setting for setting in expanded(settings_of(Balancer))}
    assert found["schedule.power"].default == 0.9
    assert found["schedule.power"].meaning == "The exponent."
    assert found["schedule.name"].type == "'poly' | 'cosine'"
    assert found["schedule.steps"].default == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rate": 3}, 3.0),
        ({"clip": None}, None),
        ({"clip": 2}, 2.0),
        ({"mode": "b"}, "b"),
        ({"size": [3, 4]}, (3, 4)),
        ({"weights": {"depth": 1}}, {"depth": 1.0}),
        ({"scale": "auto"}, "auto"),
        ({"scale": 2}, 2.0),
        ({"on": True}, True),
        ({"root": "a/b"}, Path("a/b")),
        ({"colour": "red"}, Colour.RED),
        ({"colour": Colour.RED}, Colour.RED),
        ({"names": ["a"]}, ["a"]),
        ({"free": {"x": [1]}}, {"x": [1]}),
        ({"share": 1}, 1.0),
        ({"share": None}, None),
        ({"bound": math.inf}, math.inf),
        ({"sizes": [3, 2]}, (3, 2)),
        ({"schedule": {"power": 2}}, Schedule(power=2.0)),
        ({"schedule": Schedule(power=3.0)}, Schedule(power=3.0)),
        ({"schedule": None}, None),
    ],
)
def test_values_are_converted(given, expected):
    values, problems = check(given)
    assert problems == []
    (name,) = given
    assert values[name] == expected
    assert type(values[name]) is type(expected)


def test_what_is_not_given_is_left_out():
    assert check({}) == ({"rate": 1.0}, [])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"rate": "3"}, "balancer.rate: expected float, got '3'"),
        ({"rate": True}, "balancer.rate: expected float, got True"),
        ({"rate": 10**400}, "balancer.rate: expected float, got 1000"),
        (
            {"rate": 10**5000},
            "balancer.rate: expected float, got a number that is too",
        ),
        ({"rate": math.nan}, "balancer.rate: expected float, got nan (NaN is no number)"),
        ({"rate": -math.inf}, "balancer.rate: expected float, got -inf (not finite in single"),
        ({"rate": 1e39}, "balancer.rate: expected float, got 1e+39 (not finite in single"),
        ({"count": 2**63}, "balancer.count: expected int, got 9223372036854775808 (it has more"),
        ({"clip": math.nan}, "balancer.clip: expected float | None, got nan"),
        ({"weights": {"depth": math.nan}}, "balancer.weights.depth: expected float, got nan"),
        ({"share": 0}, "balancer.share: expected float > 0 and <= 1 | None, got 0"),
        ({"share": "1"}, "balancer.share: expected float > 0 and <= 1 | None, got '1'"),
        ({"bound": 0}, "balancer.bound: expected float > 0 or inf, got 0"),
        ({"sizes": []}, "balancer.sizes: expected tuple[int >= 1, ...] of length >= 1, got []"),
        ({"sizes": [1, 0]}, "balancer.sizes[1]: expected int >= 1, got 0"),
        ({"schedule": {"steps": [2**70]}}, "balancer.schedule.steps[0]: expected int, got"),
        ({"count": 3.5}, "balancer.count: expected int, got 3.5"),
        ({"count": True}, "balancer.count: expected int, got True"),
        ({"count": "3"}, "balancer.count: expected int, got '3'"),
        ({"on": "yes"}, "balancer.on: expected bool, got 'yes'"),
        ({"on": 1}, "balancer.on: expected bool, got 1"),
        ({"clip": "x"}, "balancer.clip: expected float | None, got 'x'"),
        ({"mode": "c"}, "balancer.mode: expected 'a' | 'b', got 'c'"),
        ({"mode": ["a"]}, "balancer.mode: expected 'a' | 'b', got ['a']"),
        ({"scale": "auti"}, "balancer.scale: expected float | 'auto', got 'auti'"),
        ({"size": [1]}, "balancer.size: expected tuple[int, int], got [1]"),
        ({"size": [1, "2"]}, "balancer.size[1]: expected int, got '2'"),
        ({"size": "12"}, "balancer.size: expected tuple[int, int], got '12'"),
        ({"names": "abc"}, "balancer.names: expected Sequence[str], got 'abc'"),
        ({"weights": {"depth": "1"}}, "balancer.weights.depth: expected float, got '1'"),
        ({"weights": 3}, "balancer.weights: expected dict[str, float] | None, got 3"),
        ({"schedule": {"powr": 1}}, "balancer.schedule.powr: unknown setting; did you mean"),
        ({"schedule": {"name": "polly"}}, "balancer.schedule.name: expected 'poly' | 'cosine'"),
        ({"schedule": {"steps": [1, 2.5]}}, "balancer.schedule.steps[1]: expected int, got 2.5"),
        ({"schedule": {"power": -1}}, "balancer.schedule: 'power' must be >= 0"),
        ({"schedule": "poly"}, "balancer.schedule: expected Schedule | None, got"),
        ({"colour": "blue"}, "balancer.colour: expected Colour, got 'blue'"),
        ({"rat": 1}, "balancer.rat: unknown setting; did you mean 'rate'? (known: rate, clip"),
        ({"tasks": []}, "balancer.tasks: unknown setting (known: "),
        ({"unannotated": 1}, "balancer.unannotated: unknown setting (known: "),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(given, problem):
    values, problems = check(given)
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert values.keys() <= {"rate"}


def test_every_problem_is_reported_at_once():
    problems = []
    values = structure(Balancer, {"count": "1", "size": ["a", "b"], "x": 1}, "b", problems)
    assert values == {}
    assert [line.split(":")[0] for line in problems] == [
        "b.x",
        "b.rate",
        "b.size[0]",
        "b.size[1]",
        "b.count",
    ]
    assert problems[1].startswith("b.rate: is required")


def test_a_literal_close_to_the_word_is_suggested():
    (problem,) = check({"schedule": {"name": "cosin"}})[1]
    assert problem.startswith("balancer.schedule.name: ")
    for part in ("'poly'", "got 'cosin'", "did you mean 'cosine'"):
        assert part in problem


def test_settings_that_are_no_table_are_a_problem_and_not_an_error():
    problems = []
    assert structure(function, 3, "optimizer", problems) == {}
    (problem,) = problems
    assert problem.startswith("optimizer: expected a table") and "3" in problem


def test_a_target_without_settings_says_so():
    problems = []
    structure(object, {"a": 1}, "", problems)
    (problem,) = problems
    assert problem.startswith("a: unknown") and "no settings" in problem


def test_torch_modules_are_targets_like_others():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self, *, width: int = 8) -> None:
            super().__init__()

    assert structure(Net, {"width": 3}, "", []) == {"width": 3}

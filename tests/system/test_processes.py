"""What the environment says of several processes; what it says by accident."""

from __future__ import annotations

import pytest

from mtlcore.errors import UsageError
from mtlcore.system import (
    is_main_process,
    launched_local_rank,
    launched_rank,
    launched_world_size,
)

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def launched(monkeypatch: pytest.MonkeyPatch, *values: str | None) -> None:
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((None, None, None), (1, 0, 0)),
        (("", "", ""), (1, 0, 0)),
        (("4", "2", "0"), (4, 2, 0)),
        (("4", "2", None), (4, 2, 2)),
        # Left over from another program: one process is always the first.
        ((None, "3", "1"), (1, 0, 0)),
        (("1", "3", "1"), (1, 0, 0)),
        (("", "banana", None), (1, 0, 0)),
    ],
)
def test_ranks(
    values: tuple[str | None, ...], expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, *values)
    assert (launched_world_size(), launched_rank(), launched_local_rank()) == expected
    assert is_main_process() == (expected[1] == 0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("two", None, None), "WORLD_SIZE='two'"),
        (("0", None, None), "WORLD_SIZE='0'"),
        (("-1", None, None), "WORLD_SIZE='-1'"),
        (("1.5", None, None), r"WORLD_SIZE='1\.5'"),
        (("²", None, None), "WORLD_SIZE='²'"),
        (("2", "2", None), "RANK=2 .* unset both"),
        (("2", "first", None), "RANK='first'"),
        (("2", "1", "x"), "LOCAL_RANK='x'"),
    ],
)
def test_nonsense_is_named(
    values: tuple[str | None, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, *values)
    with pytest.raises(UsageError, match=says):
        launched_local_rank()

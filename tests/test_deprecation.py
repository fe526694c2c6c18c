"""The warning about a public name that goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlcore._deprecation import warn_deprecated


def old_name() -> int:
    """What stands for a deprecated function."""
    warn_deprecated("mtlcore.old_name", since="0.9", instead="use mtlcore.new_name")
    return 1


def test_it_names_what_when_and_the_remedy_at_the_line_that_uses_it() -> None:
    with pytest.warns(DeprecationWarning) as caught:
        assert old_name() == 1
    (warning,) = caught
    for word in ("mtlcore.old_name", "0.9", "0.10", "use mtlcore.new_name"):
        assert word in str(warning.message)
    lines = Path(__file__).read_text("utf-8").splitlines()
    assert warning.filename == __file__ and "old_name() == 1" in lines[warning.lineno - 1]

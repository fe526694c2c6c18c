"""The results pages show what the kept results of studies say: `make results` changes nothing."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import attrs
import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "studies" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_the_tables_are_those_of_the_kept_results(tool: ModuleType, file: Path) -> None:
    for path, text in tool.tables(file.stem).items():
        assert path.read_text("utf-8") == text, f"{path.name}: run `make results`"


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_a_page_shows_the_table_and_offers_it_as_csv(file: Path) -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/results").glob("*.md"))
    assert f"tables/{file.stem}.md" in pages
    assert f"tables/{file.stem}.csv" in pages


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_no_path_of_a_machine_is_kept(file: Path) -> None:
    assert not re.search(r'(^|[\s"(:])(/[\w.-]+){2}', file.read_text("utf-8"))


def test_the_numbers_of_the_pages_are_those_of_the_kept_results(tool: ModuleType) -> None:
    for page, text in tool.pages().items():
        assert page.read_text("utf-8") == text, f"{page.name}: run `make results`"


def test_pictures_are_there_and_shown(tool: ModuleType) -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/results").glob("*.md"))
    for name in tool.PICTURES:
        assert (ROOT / "docs/images" / name).is_file(), "run `make results`"
        assert f"../images/{name}" in pages


def test_a_mark_shows_what_it_names(tool: ModuleType) -> None:
    comparison = tool.kept("below-digits")
    exact, features = (comparison.variant(name) for name in ("exact", "features"))
    gain = comparison.delta_m_difference(features)
    low, high = gain.interval
    page = (
        "<!-- results below-digits -->\na <!-- = features -->?<!-- / --> b "
        "<!-- = features gain 1 -->?<!-- / --> c <!-- = exact upper_left.accuracy -->?<!-- / --> "
        "<!-- = below-census:equal income.auc mean 4 -->?<!-- / --> "
        "<!-- = equal low vs features -->?<!-- / -->"
    )
    shown = re.findall(r"-->([^<>]+)<!-- / -->", tool.filled(page))
    accuracy = comparison.spread(exact, "upper_left", "accuracy")
    census = tool.kept("below-census")
    auc = census.spread(census.variant("equal"), "income", "auc").mean
    assert shown[:4] == [
        f"{gain.mean:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{gain.mean:+.1f}",
        f"{accuracy.mean:.3f} ± {accuracy.std:.3f}".replace("0.", "."),
        f"{auc:.4f}"[1:],
    ]
    against = attrs.evolve(comparison, baseline="features")
    other = against.delta_m_difference(against.variant("equal"))
    assert shown[4] == f"{other.interval[0]:+.2f}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("<!-- = below-digits:none -->?<!-- / -->", id="no such variant"),
        pytest.param("a <!-- = below-digits:equal gain 2 3 -->?<!-- / -->", id="a word too many"),
        pytest.param("a <!-- = below-digits:equal median -->?<!-- / -->", id="no such figure"),
        pytest.param("a\n<!-- = below-digits:equal -->?<!-- / -->", id="begins a line"),
    ],
)
def test_a_mark_that_says_nothing_is_refused(tool: ModuleType, page: str) -> None:
    with pytest.raises((StopIteration, KeyError, AssertionError, ValueError)):
        tool.filled(page)

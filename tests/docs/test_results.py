"""The results pages show what the kept results of studies say: `make results` changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import attrs
import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "studies" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def tool(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tools/results.py")


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
    ("study", "variant", "against", "path", "sign"),
    [
        ("below-digits", "features", "exact", "upper_left.accuracy", 1),
        ("below-ten", "features", "held-8", "depth.abs_error", -1),
    ],
)
def test_a_line_of_a_picture_is_a_gain_in_percent(
    tool: ModuleType, study: str, variant: str, against: str, path: str, sign: int
) -> None:
    comparison = attrs.evolve(tool.kept(study), baseline=against)
    task, metric = path.split(".")
    level = comparison.spread(comparison.variant(against), task, metric).mean
    difference = comparison.difference(comparison.variant(variant), task, metric)
    mean, low, high = tool.gain_of(study, tool.Bar("a label", variant, against, path))
    assert mean == pytest.approx(sign * 100 * difference.mean / level)
    assert low < mean < high
    assert high - low == pytest.approx(
        100 * (difference.interval[1] - difference.interval[0]) / level
    )
    whole = tool.gain_of(study, tool.Bar("a label", variant, against))
    assert whole[0] == comparison.delta_m_difference(comparison.variant(variant)).mean


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


NETWORKS = (
    (ROOT / "docs" / "results" / "tables" / "networks.md").read_text("utf-8").splitlines()[2:]
)
QUICK = ("atinet-nyuv2", "cross-stitch-nyuv2", "adashare-nyuv2")


@pytest.mark.parametrize("method", QUICK)
def test_the_networks_are_as_the_table_says(tool: ModuleType, method: str) -> None:
    network = next(n for n in tool.networks() if n["method"] == method)
    assert tool.counted(network) in NETWORKS, "run `make results`"


@pytest.mark.slow
def test_all_networks_are_as_the_table_says(tool: ModuleType) -> None:
    assert [tool.counted(network) for network in tool.networks()] == NETWORKS


def test_what_the_page_of_published_numbers_says_of_the_networks(tool: ModuleType) -> None:
    """Ratios, and how many have the parameters of their authors' code."""
    rows = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in NETWORKS]
    parameters = {row[0].strip("`"): int(row[1].replace(",", "")) for row in rows}
    page = (ROOT / "docs" / "results" / "published.md").read_text("utf-8")
    same = sum(row[2] == "the same" for row in rows)
    assert (same, "Thirteen networks have exactly" in page) == (13, True)
    mtan = parameters["mtan-nyuv2"]
    ratios = {name: parameters[f"{name}-nyuv2"] / mtan for name in ("atinet", "padnet", "one-task")}
    assert f"| {', '.join(f'{ratio:.2f}' for ratio in ratios.values())} |" in page
    assert f"| {parameters['split-nyuv2'] / mtan:.2f}, as in" in page
    millions = [parameters[f"{name}-pascal"] / 1e6 for name in ("invpt", "mlore")]
    assert f"| {millions[0]:.0f} M, {millions[1]:.0f} M |" in page
    operations = next(float(r[5].replace(",", "")) for r in rows if r[0] == "`invpt-pascal`")
    assert f"| {operations / 2:.0f} G |" in page

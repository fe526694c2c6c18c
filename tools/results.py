"""Rebuilds what the results pages show from the kept results of studies.

`studies/results/NAME.json` is a copy of a study's `values.json`. From it come the tables and the
CSV in `docs/results/tables/NAME.*`, the pictures `docs/images/results-*.svg`, and every number
between two marks in the README and the documentation; from `docs/extensions/published.toml` comes
the table of networks.

    <!-- results digits -->
    it gains <!-- = nash-mtl -->+0.12 [-0.61, +0.85]<!-- / --> percent
    with a mIoU of <!-- = rooms:unit-norm segmentation.miou mean 2 -->.31<!-- / -->

The first line names the study of a page's marks. A mark names the variant, of another study with
its name before it; `delta_m` (unless said) or TASK.METRIC; what of it: its `mean` or `spread`, or
its `difference` from the baseline, of which `gain`, `low` and `high` are the parts; the number of
decimals; and `vs NAME` where the difference is from another variant.

    python tools/results.py                            # rebuild; what `make results` does
    python tools/results.py keep studies/out/x NAME    # keep a study's results
"""

from __future__ import annotations

import math
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import click

from mtlcore.plugins import Plugins
from mtlcore.results import (
    Comparison,
    Difference,
    as_csv,
    as_markdown,
    compare,
    kept_results,
    read_kept,
)
from mtlcore.runs import count_method_flops, count_method_parameters

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "studies" / "results"
PAGES = ROOT / "docs" / "results"
TABLES = PAGES / "tables"
IMAGES = ROOT / "docs" / "images"
_MARK = re.compile(r"(<!-- = ([^>]*?) -->)[^<]*(<!-- / -->)")
_STUDY = re.compile(r"<!-- results ([\w.-]+) -->")
_USUAL = {True: "difference", False: "spread"}  # what a mark shows that does not say
_FARTHEST = -60.0  # percent; what loses more is not compared any more
_OF_TIMES = "times hold for that."  # how the note ends that a study makes of its times


@cache
def kept(name: str) -> Comparison:
    """The results that are kept under a name."""
    return read_kept(str(KEPT / f"{name}.json"))


def tables(name: str) -> dict[Path, str]:
    """The files of tables of kept results, and what they hold."""
    title, _, rest = as_markdown(kept(name)).partition("\n\n")
    assert title.startswith("# ")
    return {TABLES / f"{name}.md": rest, TABLES / f"{name}.csv": as_csv(kept(name))}


def pages() -> dict[Path, str]:
    """The pages that have marks, with the numbers that they should have."""
    docs = (path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    texts = {path: path.read_text("utf-8") for path in (ROOT / "README.md", *sorted(docs))}
    return {path: filled(text) for path, text in texts.items() if _MARK.search(text)}


def filled(text: str) -> str:
    """A page's text with the numbers of its marks.

    Raises:
        ValueError: A line begins with a mark, which would end the paragraph before it.
    """
    if re.search(r"^<!-- =", text, re.MULTILINE):
        raise ValueError("a mark begins a line: Markdown takes that for a block of HTML")
    named = _STUDY.search(text)
    study = named[1] if named else ""
    return _MARK.sub(lambda found: found[1] + number(study, found[2].split()) + found[3], text)


def number(study: str, words: list[str]) -> str:
    """The text of a mark with these words, in a page about a study."""
    name, *rest = words
    other, _, variant = name.rpartition(":")
    comparison = kept(other or study)
    if rest[-2:-1] == ["vs"]:
        comparison = attrs.evolve(comparison, baseline=rest[-1])
        rest = rest[:-2]
    row = comparison.variant(variant)
    path = rest.pop(0) if rest and (rest[0] == "delta_m" or "." in rest[0]) else "delta_m"
    what = rest.pop(0) if rest and not rest[0].isdigit() else _USUAL[path == "delta_m"]
    digits = int(rest.pop(0)) if rest else 2 if path == "delta_m" else 3
    if path == "delta_m":
        spread, difference = comparison.delta_m(row), comparison.delta_m_difference(row)
    else:
        task, _, metric = path.rpartition(".")
        spread = comparison.spread(row, task, metric)
        difference = comparison.difference(row, task, metric)
    assert spread is not None and not rest, words
    if difference is None and what not in ("mean", "spread"):
        raise ValueError(f"{' '.join(words)}: {comparison.baseline} has no such metric")

    def shown(value: float, sign: str = "") -> str:
        text = f"{value:{sign}.{digits}f}"
        return text.replace("0.", ".", 1) if digits > 2 and abs(value) < 1 else text

    nothing = Difference({})
    gain = shown((difference or nothing).mean, "+")
    low, high = (shown(bound, "+") for bound in (difference or nothing).interval)
    return {
        "mean": shown(spread.mean),
        "spread": f"{shown(spread.mean)} ± {shown(spread.std)}",
        "difference": f"{gain} [{low}, {high}]",
        "gain": gain,
        "low": low,
        "high": high,
    }[what]


@attrs.frozen
class Bar:
    """A line of a picture: how much better a variant is than another one.

    Args:
        label: at its left.
        variant: whose gain it is.
        against: the other one; None: the study's baseline.
        path: "delta_m" or TASK.METRIC, of which it is the gain in percent.
    """

    label: str
    variant: str
    against: str | None = None
    path: str = "delta_m"


def gain_of(study: str, bar: Bar) -> tuple[float, float, float] | None:
    """Mean and interval of a gain in percent, more being better; None where there is none."""
    comparison = kept(study)
    if bar.against is not None:
        comparison = attrs.evolve(comparison, baseline=bar.against)
    row = comparison.variant(bar.variant)
    if bar.path == "delta_m":
        difference, percent = comparison.delta_m_difference(row), 1.0
    else:
        task, _, metric = bar.path.rpartition(".")
        difference = comparison.difference(row, task, metric)
        level = comparison.spread(comparison.variant(comparison.baseline), task, metric).mean
        percent = 100 / level * (1 if comparison.higher_is_better[task][metric] else -1)
    if difference is None or not math.isfinite(difference.mean):
        return None
    low, high = sorted(percent * bound for bound in difference.interval)
    return percent * difference.mean, low, high


def draw(panels: Mapping[str, Sequence[Bar]], file: Path) -> None:
    """Draw gains with their intervals, a panel per study.

    Args:
        panels: study -> the lines of its panel, of which all have the same labels; none: all
            variants over the baseline, by the order of the first study.
        file: where to.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams |= {"svg.hashsalt": file.stem, "svg.fonttype": "none", "font.size": 9}
    first = next(iter(panels))
    usual = [Bar(variant, variant) for variant in variants(first)]
    lines = panels[first] or usual
    figure, axes = pyplot.subplots(
        1, len(panels), sharey=True, squeeze=False, layout="constrained",
        figsize=(7.2, 0.8 + 0.2 * len(lines)),
    )  # fmt: skip
    for panel, (study, bars) in zip(axes[0], panels.items(), strict=True):
        comparison = kept(study)
        panel.axvline(0, color="0.6", linewidth=1)
        for place, bar in enumerate(bars or usual):
            found = gain_of(study, bar)
            if found is None:
                continue
            mean, low, high = found
            colour = "tab:blue" if low > 0 else "tab:red" if high < 0 else "0.35"
            panel.plot([low, high], [place, place], color=colour, linewidth=1.5)
            panel.plot([mean], [place], "o", color=colour, markersize=4)
        panel.set_title(textwrap.fill(comparison.title, 72 // len(panels)), fontsize=9)
        panel.set_xlabel("gain, %" if bars else f"Δm over {comparison.baseline}, %")
        panel.set_yticks(range(len(lines)), [line.label for line in lines])
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        if panel.get_xlim()[0] < _FARTHEST:
            panel.set_xlim(left=_FARTHEST)
    axes[0][0].set_ylim(len(lines) - 0.4, -0.6)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def variants(name: str) -> Iterator[str]:
    """The variants of kept results but the baseline, those with the largest gain first."""
    comparison = kept(name)
    gains = {}
    for variant in comparison.variants:
        difference = comparison.delta_m_difference(variant)
        if variant.name != comparison.baseline and difference is not None:
            gains[variant.name] = difference.mean
    yield from sorted(gains, key=lambda variant: -gains[variant])


def networks() -> list[dict[str, Any]]:
    """What was published of networks, in the order of the table."""
    return tomllib.loads((ROOT / "docs" / "extensions" / "published.toml").read_text("utf-8"))[
        "network"
    ]


@cache
def installed() -> Plugins:
    """All plugins."""
    return Plugins.from_environment()


def counted(network: dict[str, Any]) -> str:
    """A row of the table of networks."""
    plugins, method = installed(), network["method"]
    size = [f"data.size={network['size']}"] if "size" in network else []
    parameters = count_method_parameters(plugins, method)["total"]
    told = count_method_flops(plugins, method, size)
    image = " x ".join(map(str, told["size"])) if "size" in told else "-"
    operations = f"{told['flops'] / 1e9:,.1f}" if "flops" in told else "depends on values"
    code = f"{network['code']:,}" if "code" in network else "-"
    if network.get("code") == parameters:
        code = "the same"
    cells = [f"`{method}`", f"{parameters:,}", code, network.get("paper", "-"), image, operations]
    return "| " + " | ".join([*cells, network.get("why", "")]) + " |"


def network_table(rows: Iterable[str]) -> str:
    """The table of networks."""
    head = [
        "method",
        "parameters",
        "their code's",
        "their paper's",
        "image",
        "GFLOPs",
        "why they differ",
    ]
    rule = "| --- | ---: | ---: | --- | ---: | ---: | --- |"
    return "\n".join([f"| {' | '.join(head)} |", rule, *rows]) + "\n"


#: The picture of a page -> the studies in it, and the lines of each; none: all over the baseline.
PICTURES: dict[str, dict[str, list[Bar]]] = {
    "results-balancers-census.svg": {"balancers-census": []},
    "results-balancers-photographs.svg": {"balancers-photographs": []},
    "results-below-k-passes.svg": {"below-ten": [], "below-digits": [], "below-census": []},
    "results-encoders.svg": {"encoders": []},
    "results-ira-labels.svg": {
        "ira-labels": [
            Bar("depth, 10 %", "d10-ira", "d10-sum", "depth.abs_error"),
            Bar("depth, 30 %", "d30-ira", "d30-sum", "depth.abs_error"),
            Bar("depth, 100 %", "all-ira-depth", "all-sum", "depth.abs_error"),
            Bar("mIoU, 10 %", "s10-ira", "s10-sum", "segmentation.miou"),
            Bar("mIoU, 30 %", "s30-ira", "s30-sum", "segmentation.miou"),
            Bar("mIoU, 100 %", "all-ira-segmentation", "all-sum", "segmentation.miou"),
        ]
    },
}


@click.group(invoke_without_command=True)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Rebuild all tables, pictures and numbers of the results pages."""
    if ctx.invoked_subcommand is not None:
        return
    for file in sorted(KEPT.glob("*.json")):
        for path, text in tables(file.stem).items():
            path.write_text(text, "utf-8")
    for path, text in pages().items():
        path.write_text(text, "utf-8")
    for name, panels in PICTURES.items():
        draw(panels, IMAGES / name)
    (TABLES / "networks.md").write_text(network_table(map(counted, networks())), "utf-8")


def timeless(comparison: Comparison) -> Comparison:
    """A comparison without times of steps and memory."""
    nothing = {"seconds_per_step": None, "peak_memory": None}
    notes = [note for note in comparison.notes if not note.endswith(_OF_TIMES)]
    return attrs.evolve(
        comparison,
        notes=(*notes, "Times and memory are left out: other work ran beside."),
        variants=tuple(
            attrs.evolve(
                variant,
                runs={
                    seed: tuple(attrs.evolve(r, summary={**r.summary, **nothing}) for r in runs)
                    for seed, runs in variant.runs.items()
                },
            )
            for variant in comparison.variants
        ),
    )


@main.command()
@click.argument("study")
@click.argument("name")
@click.option("--without-times", is_flag=True, help="Other work ran beside the cells.")
def keep(study: str, name: str, without_times: bool) -> None:
    """Keep the results of the study in a directory under a name."""
    comparison = compare([study])
    if without_times:
        comparison = timeless(comparison)
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(kept_results(comparison), "utf-8")


if __name__ == "__main__":
    main()

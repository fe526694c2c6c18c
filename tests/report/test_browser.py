"""The page in a real browser: what it draws, in both themes, on a desk and on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mtlcore
from mtlcore.report import make_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium: install it to look at reports"),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--allow-file-access-from-files", "--enable-logging=stderr", "--window-size=1400,1000",
]  # fmt: skip
PHONE, DESK = 390, 1280  # pixels
DARK, LIGHT = 0, 1  # as the browser counts colour schemes

# The page stands in a frame, as a window cannot be as narrow as a phone; its script measures it.
MEASURING = """<!DOCTYPE html><body><iframe src="PAGE" style="width:WIDTHpx;height:900px;border:0">
</iframe><pre></pre><script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const root = page.documentElement, style = (e) => frame.contentWindow.getComputedStyle(e);
  const all = (what) => [...page.querySelectorAll(what)];
  const wide = (e) => Math.round(e.getBoundingClientRect().width);
  document.querySelector("pre").textContent = "MEASURED" + JSON.stringify({
    width: root.clientWidth, needed: root.scrollWidth,
    paper: style(page.body).backgroundColor, ink: style(page.body).color,
    line: style(page.querySelector("path.line")).stroke,
    pictures: all("img").length, broken: all("img").filter((e) => !e.naturalWidth).length,
    charts: all(".chart > svg").map(wide), letters: all("svg text.tick").map((e) =>
      e.getBoundingClientRect().height),
    scrolling: all(".scroll").filter((e) => e.scrollWidth > e.clientWidth + 1).length,
    outside: all("main *").filter((e) => !e.closest(".scroll") && !e.closest("svg")
      && e.getBoundingClientRect().right > root.clientWidth + 1).length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name),
  }) + "END";
});
</script></body>"""


def measured(page: Path, place: Path, width: int, scheme: int) -> dict[str, Any]:
    """What the browser makes of a page; fails where it complains."""
    assert BROWSER is not None
    wrapper = place / f"measuring-{width}-{scheme}.html"
    text = MEASURING.replace("PAGE", page.as_uri()).replace("WIDTH", str(width))
    wrapper.write_text(text, "utf-8")
    result = subprocess.run(
        [BROWSER, *FLAGS, f"--blink-settings=preferredColorScheme={scheme}",
         f"--user-data-dir={place / f'browser-{width}-{scheme}'}", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    complaints = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    found = re.search("<pre>MEASURED(.*)END</pre>", result.stdout)
    assert found is not None, result.stdout[-2000:]
    values: dict[str, Any] = json.loads(found[1])
    return values


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run, and of two variants over two seeds."""
    place = tmp_path_factory.mktemp("pages")
    for method in ("pcgrad", "nashmtl"):
        for seed in (0, 1):
            config = {
                "seed": seed,
                "data": {"train": 6, "val": 3, "size": [32, 32], "workers": 0},
                "model": {"backbone": {"width": 0.03125}},
                "training": {"epochs": 3, "batch_size": 3, "evaluate_every": 1},
            }
            mtlcore.run(config, plugins=[method], out=str(place / f"{method}-{seed}"))
    runs = sorted(str(run) for run in place.iterdir())
    found = {"run": place / "run.html", "study": place / "study.html"}
    found["run"].write_text(make_report(runs[:1]), "utf-8")
    found["study"].write_text(make_report(runs), "utf-8")
    return found


@pytest.mark.parametrize("name", ["run", "study"])
def test_on_a_phone_only_wide_tables_scroll(
    pages: dict[str, Path], tmp_path: Path, name: str
) -> None:
    found = measured(pages[name], tmp_path, PHONE, LIGHT)
    assert found["width"] in range(PHONE - 20, PHONE + 1)  # a scroll bar may take its share
    assert found["needed"] <= found["width"]
    assert found["outside"] == 0
    assert found["scrolling"] > 0
    # As wide as the screen, so that their letters can be read.
    assert min(found["charts"]) > 0.9 * PHONE - 20
    assert min(found["letters"]) > 9


@pytest.mark.parametrize("name", ["run", "study"])
def test_at_a_desk_charts_stand_beside_each_other(
    pages: dict[str, Path], tmp_path: Path, name: str
) -> None:
    found = measured(pages[name], tmp_path, DESK, LIGHT)
    assert found["needed"] <= found["width"]
    assert found["outside"] == 0
    assert len(found["charts"]) > 10
    assert max(found["charts"]) < DESK / 2.5
    assert found["pictures"] > 20
    assert found["broken"] == 0
    assert [url for url in found["fetched"] if not url.startswith("data:")] == []


def test_the_page_follows_the_reader_s_theme(pages: dict[str, Path], tmp_path: Path) -> None:
    light = measured(pages["study"], tmp_path, DESK, LIGHT)
    dark = measured(pages["study"], tmp_path, DESK, DARK)
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 28)")
    assert light["ink"] != dark["ink"]
    assert light["line"] != dark["line"]


def test_complaints_of_the_browser_are_noticed(pages: dict[str, Path], tmp_path: Path) -> None:
    """What the others rely on: a page that asks for something outside itself is complained of."""
    spoilt = tmp_path / "spoilt.html"
    text = pages["run"].read_text("utf-8")
    picture = '<img src="https://example.invalid/a.png" alt="x">'
    spoilt.write_text(text.replace("<main>", f"<main>{picture}", 1), "utf-8")
    with pytest.raises(AssertionError, match="violates"):
        measured(spoilt, tmp_path, DESK, LIGHT)

"""The files of tables that a study leaves."""

from __future__ import annotations

import json
from pathlib import Path

from mtlcore.errors import MtlError, describe
from mtlcore.results.comparison import Comparison
from mtlcore.results.csv_json import as_csv, as_data
from mtlcore.results.kept import VALUES, kept_results
from mtlcore.results.latex import as_latex
from mtlcore.results.markdown import as_markdown
from mtlcore.storage import without_nan, written_whole


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `table.md`, `table.csv`, `table.tex`, `results.json` and `values.json`, atomically.

    Returns:
        Their paths.

    Raises:
        MtlError: A file cannot be written.
    """
    results = without_nan(as_data(comparison))
    texts = {
        "table.md": as_markdown(comparison),
        "table.csv": as_csv(comparison),
        "table.tex": as_latex(comparison),
        "results.json": json.dumps(results, indent=2, allow_nan=False) + "\n",
        VALUES: kept_results(comparison),
    }
    for name, text in texts.items():
        try:
            with written_whole(folder / name) as partial:
                partial.write_text(text, "utf-8")
        except OSError as error:
            raise MtlError(f"{folder / name}: cannot be written ({describe(error)})") from error
    return [folder / name for name in texts]

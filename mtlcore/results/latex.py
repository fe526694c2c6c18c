"""A comparison as LaTeX."""

from __future__ import annotations

from mtlcore.results.comparison import Comparison
from mtlcore.results.notes import failures, notes_of
from mtlcore.results.summary_tables import Entry, tables_of

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "Δ": r"$\Delta$", "≤": r"$\le$", "≥": r"$\ge$",
}  # fmt: skip


def as_latex(comparison: Comparison) -> str:
    """Return the tables of a comparison as `tabular`s with the rules of booktabs."""
    lines = [f"% {comparison.title}: needs \\usepackage{{booktabs}}"]
    lines += [f"% {line}" for line in (*failures(comparison), *notes_of(comparison))]
    for table in tables_of(comparison):
        lines += [
            "",
            f"% {table.title}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, table.head)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_entry, row)) + r" \\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(lines) + "\n"


def _entry(entry: Entry) -> str:
    text = _escaped(entry.text)
    return f"\\textbf{{{text}}}" if entry.bold else text


def _escaped(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in text)

"""Equations as SVG, drawn while the site is built: readers need neither a script nor a network."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import ziafont
import ziamath
from docutils import nodes
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_SIZE = 16.0  # Pixels per em while drawing. The page gets em, so equations follow its font size.

ziamath.config.svg2 = False  # SVG 2 names glyphs by ids, which equations of one page would share.
ziafont.config.precision = 2


def svg(tex: str, inline: bool) -> str:
    """Draw an equation in the colour and size of the text around it.

    Raises:
        ValueError: the equation holds a command that is not known.
    """
    drawn = ziamath.Latex(tex, size=_SIZE, color="currentColor", inline=inline)
    # A command that latex2mathml does not know becomes text.
    unknown = [element.text for element in drawn.mathml.iter() if "\\" in (element.text or "")]
    if unknown:
        raise ValueError(f"unknown command {', '.join(map(str, unknown))} in the equation {tex}")
    image = drawn.svgxml()
    width, height = (float(image.attrib.pop(side)) / _SIZE for side in ("width", "height"))
    style = f"width:{width:.3f}em; height:{height:.3f}em"
    if inline:
        style += f"; vertical-align:{drawn.getyofst() / _SIZE:.3f}em"
    image.attrib |= {"role": "img", "aria-label": " ".join(tex.split()), "style": style}
    return ElementTree.tostring(image, encoding="unicode")


def _visit_inline(translator: Any, node: nodes.math) -> None:
    _write(translator, node, "span", inline=True)


def _visit_block(translator: Any, node: nodes.math_block) -> None:
    _write(translator, node, "div", inline=False)


def _write(translator: Any, node: nodes.Element, tag: str, inline: bool) -> None:
    try:
        image = svg(node.astext(), inline)
    except ValueError as error:
        _LOG.warning("%s", error, location=node)
        image = translator.encode(node.astext())
    translator.body.append(translator.starttag(node, tag, "", CLASS="math"))
    translator.body.append(f"{image}</{tag}>")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("svg", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

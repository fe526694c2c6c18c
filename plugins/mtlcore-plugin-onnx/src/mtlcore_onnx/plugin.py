"""What this plugin adds: an exporter of ONNX files."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import ExporterSpec, hookimpl


@hookimpl
def mtl_exporters() -> Iterator[ExporterSpec]:
    """Yield the exporter."""
    yield ExporterSpec(
        name="onnx",
        target="mtlcore_onnx.exporter:Onnx",
        summary="An ONNX file, compared as onnxruntime computes it.",
    )

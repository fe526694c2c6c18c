"""Writing a program as an ONNX file, and reading it back with onnxruntime."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, final

import attrs
import onnx
import onnxruntime
import torch
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.exporters import DESCRIPTION, Exporter, Program, ProgramFile

# A file is one message of protobuf, whose size has 31 bits; some are for what is no weight.
_MOST_BYTES = 2**31 - 2**24


@final
@attrs.frozen(eq=False)
class _OnnxFile:
    session: onnxruntime.InferenceSession

    @property
    def description(self) -> str:
        found: str = self.session.get_modelmeta().custom_metadata_map.get(DESCRIPTION, "")
        return found

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {name: x.numpy() for name, x in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


@final
class Onnx(Exporter):
    """An ONNX file, which onnxruntime and many other engines read.

    Inputs and outputs have their names and those of the axes that vary; the description is the
    entry "mtlcore" of `metadata_props`.
    """

    def write(self, program: Program, path: Path) -> None:
        """Write by `torch.onnx.export`, without places in the code of this machine.

        Raises:
            UsageError: The weights are larger than one ONNX file can hold.
        """
        state = program.traced.state_dict.values()
        size = sum(x.numel() * x.element_size() for x in state)
        if size > _MOST_BYTES:
            raise UsageError(
                f"the weights have {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB; export to "
                "torch-export"
            )
        with _quietly():
            exported = torch.onnx.export(
                program.traced,
                input_names=[info.name for info in program.inputs],
                output_names=[info.name for info in program.outputs],
                dynamo=True,
                verbose=False,
            )
        assert exported is not None
        model = exported.model_proto
        _name_axes(model, program)
        _forget_places(model)
        entry = model.metadata_props.add()
        entry.key, entry.value = DESCRIPTION, program.description
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())

    def read(self, path: Path) -> ProgramFile:
        """Open a session of onnxruntime, on the CPU."""
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return _OnnxFile(session)


def _name_axes(model: onnx.ModelProto, program: Program) -> None:
    """Call axes that vary by their names, where torch numbers them: "batch" instead of "s77"."""
    names: dict[str, str] = {}
    for value, info in zip(model.graph.input, program.inputs, strict=True):
        for dimension, axis in zip(value.type.tensor_type.shape.dim, info.shape, strict=True):
            if isinstance(axis, str):
                names[dimension.dim_param] = axis
    symbol = re.compile(r"\b[A-Za-z_]\w*")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = symbol.sub(
                    lambda found: names.get(found[0], found[0]), dimension.dim_param
                )


def _forget_places(model: onnx.ModelProto) -> None:
    """Leave out the notes of torch, which hold paths of this machine."""
    for part in _parts(model):
        del part.metadata_props[:]
        part.doc_string = ""


def _parts(model: onnx.ModelProto) -> Iterator[Any]:
    yield model
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        yield graph
        for node in graph.node:
            yield node
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        for value in (*graph.value_info, *getattr(graph, "input", ())):
            if not isinstance(value, str):
                yield value


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch.onnx prints and warns of, about itself, from the user."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield

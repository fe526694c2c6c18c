"""The contract of exporters, which write a trained model as a program that needs no mtlcore."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import attrs
from torch import Tensor

if TYPE_CHECKING:  # it imports torch's compiler
    from torch.export import ExportedProgram

__all__ = [
    "DESCRIPTION",
    "Exporter",
    "Program",
    "ProgramFile",
    "TensorInfo",
]

#: The name under which a file keeps `Program.description`, where its format has names for such.
DESCRIPTION = "mtlcore"


@final
@attrs.frozen(kw_only=True)
class TensorInfo:
    """An input or an output of a program.

    Args:
        name: Its name in the file; a Python identifier.
        dtype: Name of its data type, such as "uint8" or "float32".
        shape: Length of each dimension, or the name of one that varies, such as "batch".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@final
@attrs.frozen(kw_only=True, eq=False)
class Program:
    """A model that was traced: what exporters write.

    Args:
        traced: Called with the inputs in their order; returns a dictionary of each output by its
            name. On the CPU, in evaluation mode.
        inputs: In the order in which they are given.
        outputs: In the order in which they are returned; one per task.
        least: Name of an axis that varies -> the least length that it may have.
        most: Name of an axis that varies -> the greatest length, where there is one.
        description: What a file tells of it, as JSON.
    """

    traced: ExportedProgram
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    least: Mapping[str, int]
    most: Mapping[str, int]
    description: str


class ProgramFile(Protocol):
    """A file that was read back."""

    @property
    def description(self) -> str:
        """The text that `Program.description` was."""

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return each output by its name.

        Args:
            inputs: Each input by its name, in their order, on the CPU.
        """


class Exporter(abc.ABC):
    """A file format of programs, made as `Exporter()`.

    The core traces the model, describes it, and compares what the file computes with what the model
    predicts, before the file gets its name.
    """

    @abc.abstractmethod
    def write(self, program: Program, path: Path) -> None:
        """Write the program.

        Args:
            program: What is written, with its description and the names of inputs and outputs.
            path: A file that does not exist yet, in a folder that does. Everything is in this file.

        Raises:
            UsageError: The format cannot hold such a program, or a library is missing.
        """

    @abc.abstractmethod
    def read(self, path: Path) -> ProgramFile:
        """Read a program back as its users will: by what the format is run with, without the model.

        Args:
            path: A file that `write` has written.
        """

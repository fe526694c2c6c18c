"""The exporter that needs nothing besides torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

import attrs
import torch
from torch import Tensor

from mtlcore.exporters import DESCRIPTION, Exporter, Program, ProgramFile

if TYPE_CHECKING:  # it imports torch's compiler
    from torch.export import ExportedProgram

_FILE = f"{DESCRIPTION}.json"


@final
@attrs.frozen(eq=False)
class _TorchFile:
    program: ExportedProgram
    description: str

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs: Mapping[str, Tensor] = self.program.module()(*inputs.values())
        return outputs


@final
class TorchExport(Exporter):
    """A program of `torch.export`, which `torch.export.load` reads.

    The description is the extra file "mtlcore.json". A program is read by the version of torch that
    wrote it and by later ones, within what torch promises of `torch.export.save`.
    """

    def write(self, program: Program, path: Path) -> None:
        """Write by `torch.export.save`."""
        # Into a stream: of a path, torch would judge the ending.
        with path.open("wb") as file:
            torch.export.save(program.traced, file, extra_files={_FILE: program.description})

    def read(self, path: Path) -> ProgramFile:
        """Read by `torch.export.load`."""
        extra = {_FILE: ""}
        with path.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
        return _TorchFile(program, extra[_FILE])

"""Exporters that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import attrs
import pytest
import torch

from mtlcore.standard.exporters import TorchExport
from mtlcore.testing import ExporterContract


@attrs.frozen
class Changed:
    """A file that was read, with something changed."""

    file: object
    change: object = staticmethod(lambda outputs: outputs)
    description: str = ""

    def run(self, inputs):
        return self.change(self.file.run(inputs))


class Forgets(TorchExport):
    def read(self, path):
        return Changed(super().read(path), description="{}")


class Rounds(TorchExport):
    def read(self, path):
        file = super().read(path)
        return Changed(file, lambda outputs: {n: x.half().float() for n, x in outputs.items()})


class Sorts(TorchExport):
    def read(self, path):
        return Changed(super().read(path), lambda outputs: dict(sorted(outputs.items())))


class NarrowBatch(TorchExport):
    def read(self, path):
        return Changed(super().read(path), lambda out: {n: x[:1] for n, x in out.items()})


class TwoFiles(TorchExport):
    def write(self, program, path):
        super().write(program, path)
        path.with_suffix(".txt").write_text(program.description)


class FixesNothing(TorchExport):
    def write(self, program, path):
        if not program.least:
            raise RuntimeError("no length varies")
        super().write(program, path)


FAULTS = {
    Forgets: ("test_the_description_comes_back", "the description is another one"),
    Rounds: ("test_a_program_comes_back", "differs by up to"),
    Sorts: ("test_a_program_comes_back", "its outputs are depth, normals, segmentation"),
    NarrowBatch: ("test_lengths_vary", r"a larger batch: segmentation is .* \[1, 4, 8, 12\]"),
    TwoFiles: ("test_a_program_comes_back", r"it wrote \['program', 'program.txt'\]"),
    FixesNothing: ("test_fixed_lengths", "no length varies"),
}


def contract_of(exporter: type) -> ExporterContract:
    class Contract(ExporterContract):
        def make(self):
            return exporter()

    return Contract()


@pytest.mark.parametrize("exporter", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_is_caught(exporter: type) -> None:
    test, message = FAULTS[exporter]
    with pytest.raises((AssertionError, RuntimeError), match=message):
        getattr(contract_of(exporter), test)()


def test_the_plain_one_passes() -> None:
    with torch.random.fork_rng():
        contract = contract_of(TorchExport)
        for name in dir(contract):
            if name.startswith("test_"):
                getattr(contract, name)()

"""What holds for every exporter of trained runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mtlcore.deployment import (
    DeployedModel,
    attempts,
    described,
    difference,
    named_axes,
    trace,
)
from mtlcore.exporters import Exporter, Program, ProgramFile
from mtlcore.testing.tiny import tiny_batch, tiny_learner

_REASON = "für einen Test"  # no ASCII


class ExporterContract:
    """Subclass it, write `make`, and pytest checks the exporter."""

    def make(self) -> Exporter:
        """Return the exporter."""
        raise NotImplementedError

    def test_a_program_comes_back(self) -> None:
        """Otherwise the file is none of the model, and nobody can use it."""
        with self._written() as (model, program, file):
            _check(model, file, model.tensors(tiny_batch(1).inputs), "a sample")
            found = [*file.run(model.tensors(tiny_batch(1).inputs))]
            wanted = [info.name for info in program.outputs]
            assert found == wanted, f"the outputs are {found}, and {wanted} were written"

    def test_lengths_vary(self) -> None:
        """Otherwise a file takes one size of image, whatever it tells of itself."""
        with self._written() as (model, _, file):
            image = model.tensors(tiny_batch(4).inputs)["image"]
            _check(model, file, {"image": image}, "a larger batch")
            _check(model, file, {"image": image[:, :, :5, :7].contiguous()}, "a smaller image")
            large = torch.cat([image, image.flip(3)], dim=3)
            _check(model, file, {"image": large}, "a larger image")

    def test_fixed_lengths(self) -> None:
        """Otherwise a model that takes one size only cannot be written at all."""
        with self._written(varying=()) as (model, _, file):
            _check(model, file, model.tensors(tiny_batch(1).inputs), "a sample")

    def test_the_description_comes_back(self) -> None:
        """Otherwise nobody knows what the outputs are, and the core refuses the file."""
        with self._written() as (_, program, file):
            assert file.description == program.description, "the description is another one"

    @contextmanager
    def _written(
        self, varying: Sequence[str] | None = None
    ) -> Iterator[tuple[DeployedModel, Program, ProgramFile]]:
        """Write and read a program in which all lengths vary, or those that are named."""
        inputs = tiny_batch(1).inputs
        # In an order that is not that of the alphabet.
        model = DeployedModel(
            tiny_learner().model.eval(), ("segmentation", "depth", "normals"), inputs, "image"
        ).eval()
        sample = model.tensors(inputs)
        axes = attempts(named_axes(model, sample))[0] if varying is None else varying
        program = described(model, trace(model, sample, axes), sample, {"length": _REASON}, "rooms")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program"
            exporter = self.make()
            exporter.write(program, path)
            files = sorted(file.name for file in Path(folder).iterdir())
            assert files == ["program"], f"it wrote {files}, and everything belongs into one file"
            yield model, program, exporter.read(path)


def _check(model: DeployedModel, file: ProgramFile, given: dict[str, Tensor], what: str) -> None:
    with torch.no_grad():
        expected = model(*given.values())
    wrong = difference(file.run(given), expected)
    assert wrong is None, f"{what}: {wrong}"

"""What vectors of samples were, kept by the samples' keys."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: So many vectors of a step, on each process, are remembered.
NEW = 1024
_NOBODY = -1


@final
class Memory(nn.Module):
    """A vector of unit length per sample, an average of what it was whenever the sample was seen.

    A vector is offered in the pass that computes it, and enters the memory once the step is taken
    (`offered` and `remember`). All that is offered is in buffers, so that a step that is skipped,
    and a pass with other buffers, leave nothing behind.

    A sample gets a row when it is first remembered. Once all rows are taken, the row that was given
    away longest ago is taken from its sample.

    Args:
        rows: number of samples that are remembered. Until they are, rows are random.
        length: of the vectors.
        momentum: factor on what is remembered of a sample; the new vector has the rest.
    """

    vectors: Tensor
    owners: Tensor
    given: Tensor
    new_vectors: Tensor
    new_owners: Tensor
    offers: Tensor

    def __init__(self, rows: int, length: int, momentum: float) -> None:
        super().__init__()
        self._rows, self._momentum = rows, momentum
        largest = math.sqrt(3 / length)
        self.register_buffer("vectors", torch.empty(rows, length).uniform_(-largest, largest))
        self.register_buffer("owners", torch.full((rows,), _NOBODY))
        self.register_buffer("given", torch.zeros((), dtype=torch.int64))
        self.register_buffer("new_vectors", torch.zeros(NEW, length), persistent=False)
        self.register_buffer("new_owners", torch.full((NEW,), _NOBODY), persistent=False)
        self.register_buffer("offers", torch.zeros((), dtype=torch.int64), persistent=False)

    def find(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is remembered of samples.

        Args:
            owners: of each sample the number that `number_of` gives it, (B,).

        Returns:
            The vectors (B, length), and of each whether the sample is remembered at all, (B,); if
            it is not, the vector is another sample's.
        """
        matches = self.owners == owners[:, None]
        return self.vectors[matches.int().argmax(1)], matches.any(1)

    def offer(self, owners: Tensor, vectors: Tensor) -> None:
        """Note vectors (B, length), for `remember`; the first ones of a very large batch."""
        owners, vectors = owners[:NEW], vectors[:NEW].detach()
        places = (self.offers + torch.arange(len(owners), device=owners.device)) % NEW
        self.new_owners[places] = owners
        self.new_vectors[places] = vectors.to(self.new_vectors)
        self.offers += len(owners)

    def offered(self) -> tuple[list[int], Tensor]:
        """Return the owners and the vectors (N, length) that were offered, and offer them no more.

        The vectors are on the CPU.
        """
        count = min(int(self.offers), NEW)
        found = self.new_owners[:count].tolist(), self.new_vectors[:count].cpu()
        self.offers.zero_()
        return found

    def remember(self, owners: Sequence[int], vectors: Tensor) -> None:
        """Take in vectors (N, length) of samples; of those of one sample, the last one."""
        row_of = {owner: row for row, owner in enumerate(self.owners.tolist()) if owner != _NOBODY}
        owner_of = {row: owner for owner, row in row_of.items()}
        before, given = dict(row_of), int(self.given)
        # Row -> number of its vector, and whether an older one of the same sample is there.
        changes: dict[int, tuple[int, bool]] = {}
        for number, owner in enumerate(owners):
            if owner not in row_of:
                row, given = given % self._rows, given + 1
                row_of.pop(owner_of.get(row, _NOBODY), None)
                row_of[owner], owner_of[row] = row, owner
            row = row_of[owner]
            changes[row] = (number, before.get(owner) == row)
        if not changes:
            return
        rows = torch.tensor([*changes], device=self.vectors.device)
        numbers = [number for number, _ in changes.values()]
        old = torch.tensor([old for _, old in changes.values()], device=rows.device)
        new = vectors[numbers].to(self.vectors)
        mixed = self._momentum * self.vectors[rows] + (1 - self._momentum) * new
        self.vectors[rows] = F.normalize(torch.where(old[:, None], mixed, new), dim=1)
        self.owners[rows] = torch.tensor([owner_of[row] for row in changes], device=rows.device)
        self.given.fill_(given)


def number_of(key: str) -> int:
    """Return a number for a sample's key, the same in every process; it is not negative."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

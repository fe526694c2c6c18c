"""The folder dataset on real photographs: what is known of the table-top scenes."""

from pathlib import Path

import pytest
import torch

from mtlcore.data import collate
from mtlcore.datasets.folder import Folder

PROJECT = Path(__file__).resolve().parents[2]
TABLETOP = str(PROJECT / "examples" / "tabletop.toml")


@pytest.fixture(scope="module")
def root(real_data):
    return str(real_data("tabletop"))


@pytest.fixture(scope="module")
def tabletop(root):
    return Folder(root, "train", spec=TABLETOP)


def test_the_real_photographs_hold_what_is_known_of_them(root, tabletop):
    assert (len(tabletop), len(Folder(root, "val", spec=TABLETOP))) == (45, 62)
    assert Folder.default_size(root, spec=TABLETOP) == (96, 128)
    samples = [tabletop[i] for i in range(len(tabletop))]
    pixels = 45 * 240 * 320
    for task, share in (("depth", 0.61), ("normals", 0.57)):
        known = sum(int(sample.valid[task].sum()) for sample in samples)
        assert known / pixels == pytest.approx(share, abs=0.03)
    depth = torch.cat([s.targets["depth"][0][s.valid["depth"]] for s in samples])
    assert float(depth.min()) >= 0.464 - 1e-6
    assert float(depth.max()) <= 1.723 + 1e-6
    batch = collate(samples[:4], Folder.describe(root, spec=TABLETOP))
    assert batch.inputs.shape == (4, 3, 240, 320)
    assert all(batch.count.values())


def test_the_real_normals_are_those_of_the_depth(tabletop):
    sample = tabletop[0]
    depth, normals = sample.targets["depth"][0].double(), sample.targets["normals"].double()
    rows, columns = torch.meshgrid(torch.arange(240), torch.arange(320), indexing="ij")
    # Pixel centres of a 640x480 sensor, halved.
    x = ((columns + 0.5) * 2 - 0.5 - 319.5) / 525 * depth
    y = ((rows + 0.5) * 2 - 0.5 - 239.5) / 525 * depth
    points = torch.stack([x, y, depth])
    known = sample.valid["normals"] & sample.valid["depth"]
    length = normals.norm(dim=0)[known]
    torch.testing.assert_close(length, torch.ones_like(length), atol=1e-5, rtol=0)
    facing = (normals * points).sum(0)[known] < 0
    assert float(facing.double().mean()) > 0.999
    # Between two points of one surface and its normal there is a right angle.
    step = points[:, :, 8:] - points[:, :, :-8]
    near = known[:, 8:] & known[:, :-8] & (step.norm(dim=0) < 0.05)
    lean = (step * normals[:, :, 4:-4]).sum(0).abs() / step.norm(dim=0)
    assert float(lean[near & known[:, 4:-4]].median()) < 0.1

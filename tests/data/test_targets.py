"""A sample's numbers become values of a kind in one place, whichever dataset they come from."""

import math

import attrs
import pytest
import torch

from mtlcore.data import DataError, Sample, collate, complete
from mtlcore.tasks import Task

SIZE = (4, 6)
TASKS = {
    "segmentation": Task(name="t", kind="segmentation", channels=2),
    "depth": Task(name="t", kind="depth", channels=1),
    "inverse-depth": Task(name="t", kind="inverse-depth", channels=1),
    "normals": Task(name="t", kind="normals", channels=3),
    "edges": Task(name="t", kind="edges", channels=1),
    "saliency": Task(name="t", kind="saliency", channels=1),
    "heat": Task(name="t", kind="heat", channels=2),
    "classification": Task(name="t", kind="classification", channels=3),
    "multilabel": Task(name="t", kind="multilabel", channels=2),
    "regression": Task(name="t", kind="regression", channels=2),
}
GOOD = {"segmentation": 1, "classification": 2, "normals": 0.6, "multilabel": 1.0}
NAN, INF = math.nan, math.inf
BAD = {
    "segmentation": (2, -1, 255, 0.2, 1.7, NAN, INF, -INF, 1e30, 2**40),
    "classification": (3, -1, 0.5, NAN, INF),
    "depth": (0, -1.5, NAN, INF),
    "inverse-depth": (0, -0.1, NAN, -INF),
    "normals": (NAN, INF),
    "edges": (255, 1.5, -0.5, 2, 65535, NAN, INF),
    "saliency": (255, -1, 128, 1e30, NAN),
    "multilabel": (2, -1, 255, NAN),
    "heat": (NAN, INF, -INF, 1e39),
    "regression": (NAN, INF, 1e39),
}


def sample(task, value, valid=True):
    """A label of good values in double precision, the last of them replaced by `value`."""
    target = torch.full(task.target_shape(SIZE), GOOD.get(task.kind, 0.5), dtype=torch.float64)
    mask = torch.ones(task.valid_shape(SIZE), dtype=torch.bool)
    target.view(-1)[-1] = value
    mask.view(-1)[-1] = valid
    if task.layout == "map" and task.dtype != "int64":
        target[..., -1, -1] = value
    return Sample(
        inputs=torch.zeros(3, *SIZE),
        targets={"t": target},
        valid={"t": mask},
        key="photo.png",
        sources={"t": "label.png"},
    )


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in BAD.items() for value in values]
)
def test_a_value_that_a_kind_does_not_have_is_refused(kind, value):
    task = TASKS[kind]
    for make in (collate, lambda samples, tasks: complete(samples[0], tasks)):
        with pytest.raises(DataError, match=r"^label\.png: t label ") as refused:
            make([sample(task, float(value))], [task])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in BAD.items() for value in values]
)
def test_it_is_passed_over_where_there_is_no_label(kind, value):
    task = TASKS[kind]
    batch = collate([sample(task, float(value), valid=False)], [task])
    assert bool(batch.targets["t"].isfinite().all())
    assert str(batch.targets["t"].dtype) == f"torch.{task.dtype}"
    assert batch.count["t"] == math.prod(task.valid_shape(SIZE)) - 1


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.float64])
def test_whole_numbers_of_every_data_type_are_taken(kind, dtype):
    batch = collate([sample(TASKS[kind], 1)], [TASKS[kind]])
    one = sample(TASKS[kind], 1)
    targets = {"t": torch.ones_like(one.targets["t"]).to(dtype)}
    again = collate([attrs.evolve(one, targets=targets)], [TASKS[kind]])
    assert again.targets["t"].dtype == batch.targets["t"].dtype


@pytest.mark.parametrize("label", [255, 2])
def test_an_unknown_class_is_mapped_or_declared_invalid(label):
    with pytest.raises(DataError) as refused:
        collate([sample(TASKS["segmentation"], label)], [TASKS["segmentation"]])
    assert f'values = {{{label} = "its class"}}' in str(refused.value)
    assert f"invalid = {label}" in str(refused.value)


@pytest.mark.parametrize(("value", "line"), [(255, f"{1 / 255!r}"), (65535, f"{1 / 65535!r}")])
def test_the_message_holds_the_line_to_write(value, line):
    with pytest.raises(DataError) as refused:
        collate([sample(TASKS["edges"], value)], [TASKS["edges"]])
    assert f"scale = {line}" in str(refused.value)


def test_what_rounding_leaves_over_is_cut_off():
    for value, kept in ((1 + 5e-5, 1.0), (-5e-5, 0.0)):
        target = collate([sample(TASKS["edges"], value)], [TASKS["edges"]]).targets["t"]
        assert target.view(-1)[-1] == kept
        assert target[0, 0, 0, 0] == 0.5


def test_normals_are_made_unit_and_have_no_label_where_they_have_no_length():
    task = TASKS["normals"]
    target = torch.tensor([3.0, 0.0, 4.0]).view(3, 1, 1).repeat(1, *SIZE)
    target[:, 0, 0] = 0
    target[:, 0, 1] = torch.tensor([1e30, 0, 0])
    made = Sample(
        inputs=torch.zeros(3, *SIZE),
        targets={"t": target},
        valid={"t": torch.ones(SIZE, dtype=torch.bool)},
        key="x",
    )
    batch = collate([made], [task])
    assert batch.targets["t"][0, :, 1, 1].tolist() == pytest.approx([0.6, 0, 0.8])
    assert batch.targets["t"][0, :, 0, 1].tolist() == [1, 0, 0]
    assert batch.targets["t"][0, :, 0, 0].tolist() == list(task.safe_value)
    assert not batch.valid["t"][0, 0, 0]
    assert batch.count["t"] == math.prod(SIZE) - 1
    units = torch.nn.functional.normalize(torch.randn(3, *SIZE), dim=0)
    kept = collate([attrs.evolve(made, targets={"t": units})], [task])
    assert torch.equal(kept.targets["t"][0], units)


@pytest.mark.parametrize(
    ("target", "valid"),
    [
        (torch.zeros(1, *SIZE), torch.ones(SIZE)),
        (torch.zeros(1, *SIZE).numpy(), torch.ones(SIZE).bool()),
        (torch.zeros(1, *SIZE, dtype=torch.complex64), torch.ones(SIZE).bool()),
        ([[0.0]], None),
    ],
)
def test_what_is_no_tensor_with_a_mask_is_named(target, valid):
    made = Sample(
        inputs=torch.zeros(3, *SIZE),
        targets={"t": target},
        valid={} if valid is None else {"t": valid},
        key="x",
    )
    with pytest.raises(DataError, match=r"^x: t label"):
        collate([made], [TASKS["edges"]])

"""ATRC keeps the contract over any encoder; draws, settles, keeps and begins anew as it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Backbone, MultiTaskModel
from mtlcore.standard.heads import PointwiseHead
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyPyramid
from mtlcore_atrc.backbone import ATRC
from mtlcore_atrc.contexts import KINDS, Kind

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
PYRAMID = partial(UNet, width=1 / 32, decoder="none", output_stride=4)
# Of every kind one at least, and a target that gathers nothing of itself.
GENOTYPE: dict[str, dict[str, Kind]] = {
    "segmentation": {"segmentation": "global", "depth": "s-label", "normals": "local"},
    "depth": {"segmentation": "t-label", "depth": "none", "normals": "s-label"},
    "normals": {"segmentation": "s-label", "depth": "global", "normals": "t-label"},
}


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def of(tasks: Sequence[Task], genotype: Mapping[str, Mapping[str, Kind]] = GENOTYPE):
    """Return the rows and columns of a genotype that these tasks have; others if it has none."""
    if not set(NAMES) >= {task.name for task in tasks}:
        renamed = dict(zip(NAMES, (task.name for task in tasks), strict=True))
        return {renamed[t]: {renamed[s]: k for s, k in row.items()} for t, row in genotype.items()}
    names = [task.name for task in tasks]
    return {t: {s: k for s, k in genotype.get(t, {}).items() if s in names} for t in names}


def set_logits(backbone: ATRC, genotype: Mapping[str, Mapping[str, Kind]], lead: float) -> ATRC:
    """Let the kinds of a genotype lead."""
    with torch.no_grad():
        for target, row in genotype.items():
            for source, kind in row.items():
                logits = backbone._logits_of(target, source)
                logits.zero_()[KINDS.index(kind)] = lead
    return backbone


def left_out() -> tuple[str, ...]:
    """Beginnings of names of what is not reached in every phase of a search for the genotype."""
    found = ["logits."]
    for target, row in GENOTYPE.items():
        where = f"refinements.{KEYS[target]}"
        for source, kind in row.items():
            contexts = f"{where}.contexts.{KEYS[source]}"
            for other in KINDS:
                # Of the one that is gathered all but the scale is reached while it is searched for.
                last = "value.s" if other == kind else ""
                found.append(f"{contexts}.{other.replace('-', '_')}_context.{last}")
            if kind == "none":
                found.append(f"{where}.projections.{KEYS[source]}.")
    return tuple(found)


class TestSearchThenTraining(BackboneContract):
    """Every phase; what the genotype leaves out is reached while it is searched for."""

    unreached = left_out()

    def make(self, tasks: Sequence[Task]) -> Backbone:
        backbone = ATRC(tasks, backbone=PYRAMID, channels=6, window=3, labels=5)
        return set_logits(backbone, of(tasks), 0.5)


class TestOverWhatPredicts(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return ATRC(
            tasks,
            backbone=partial(TinyPyramid, predicts=True),
            genotype=of(tasks),
            channels=6,
            window=3,
            labels=5,
        )


class TestAFewContexts(BackboneContract):
    """A task that gathers nothing, and one whose map and labels no other one reads."""

    def make(self, tasks: Sequence[Task]) -> Backbone:
        few = {"depth": {"segmentation": "local"}, "normals": {"normals": "t-label"}}
        return ATRC(tasks, backbone=TinyPyramid, genotype=of(tasks, few), channels=6, window=3)


def searching(**settings: object) -> ATRC:
    settings = {"channels": 6, "window": 3, "labels": 5, **settings}
    return ATRC(TINY_TASKS, backbone=TinyPyramid, **settings)


def given(**settings: object) -> ATRC:
    return searching(genotype=GENOTYPE, **settings)


IMAGES = (2, 3, 16, 24)


def test_while_searching_every_kind_is_reached_and_values_have_no_scale() -> None:
    backbone = searching()
    with torch.no_grad():  # it begins at 0, where nothing that is gathered is reached
        for refinement in backbone.refinements.values():
            refinement.gathered[0].weight.fill_(1.0)
    features = backbone(torch.rand(IMAGES), NAMES)
    early = [one.prediction.sum() for several in features.early.values() for one in several]
    loss = torch.stack([(features.of(n)[0] ** 2).sum() for n in NAMES] + early).sum()
    loss.backward()
    for name, parameter in backbone.named_parameters():
        if name.endswith(("value.scale", "value.shift")):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    for target in NAMES:
        for source in NAMES:
            assert len(backbone._logits_of(target, source)) == (4 if target == source else 5)
            assert bool(backbone._logits_of(target, source).grad.any())


def test_weights_are_those_of_gumbel_softmax() -> None:
    backbone = searching(search=1.0, temperature=2.0, cold=1.0)
    set_logits(backbone, GENOTYPE, 0.4)
    backbone.at_progress(0.5)
    logits = backbone._logits_of("depth", "normals")
    torch.manual_seed(5)
    weights = backbone._weights("depth", "normals")
    torch.manual_seed(5)
    gumbel = -torch.empty(5).exponential_().log()
    torch.testing.assert_close(weights, ((logits + gumbel) / 1.5).softmax(0))
    counts = torch.zeros(5)
    for _ in range(3000):
        counts[backbone._weights("depth", "normals").argmax()] += 1
    torch.testing.assert_close(counts / 3000, logits.softmax(0).detach(), rtol=0, atol=0.03)


def test_what_is_gathered_while_searching_is_the_weighted_mean_of_all_kinds() -> None:
    backbone = searching()
    images = torch.rand(IMAGES)
    refinement = backbone.refinements[KEYS["depth"]]
    fused = fused_maps(backbone, images)
    maps = {name: backbone.branches[key](fused) for name, key in KEYS.items()}
    where = {n: backbone.labels[key](fused).flatten(2).softmax(2) for n, key in KEYS.items()}
    torch.manual_seed(1)
    parts = backbone._parts("depth")
    assert {source: [*kinds] for source, kinds in parts.items()} == {
        source: [*(KINDS[1:4] if source == "depth" else KINDS[1:])] for source in NAMES
    }
    total = torch.zeros(())
    for source, kinds in parts.items():
        for kind, weight in kinds.items():
            labels = {"t-label": where["depth"], "s-label": where[source]}.get(kind)
            gathered = refinement.context(source, kind)(
                maps["depth"], maps[source], labels, scaled=False
            )
            total = total + weight * refinement.projections[KEYS[source]](gathered)
    expected = refinement.own(maps["depth"]) + refinement.gathered(total)
    expected = refinement.join(expected)
    torch.testing.assert_close(refinement(maps, where, parts, searching=True), expected)


def test_temperature_and_weight_of_the_entropy_change_evenly() -> None:
    """A quarter of the search keeps the entropy high, as the authors say of their schedule."""
    backbone = searching()
    assert [backbone.heat(x) for x in (0.0, 1.0, 2.0)] == pytest.approx([1.0, 0.05, 0.05])
    assert backbone.heat(0.25) == pytest.approx(0.7625)
    assert backbone.entropy_weight(0.25) == pytest.approx(0.0)
    assert [backbone.entropy_weight(x) for x in (0, 0.5, 1)] == pytest.approx([-0.02, 0.02, 0.06])


def test_the_term_is_the_mean_entropy_of_all_pairs() -> None:
    backbone = set_logits(searching(search=0.5), GENOTYPE, 0.4)
    backbone.at_progress(0.4)
    found = backbone(torch.rand(IMAGES), NAMES).terms["entropy"]
    entropies = []
    for target in NAMES:
        for source in NAMES:
            chances = backbone._logits_of(target, source).detach().softmax(0)
            entropies.append(-sum(float(p) * float(p.log()) for p in chances))
    assert found.item() == pytest.approx(0.044 * sum(entropies) / 9, rel=1e-5)
    assert not backbone(torch.rand(IMAGES), []).terms
    assert "entropy" not in given()(torch.rand(IMAGES), NAMES).terms


def test_what_leads_by_the_margin_is_settled_for_the_rest_of_the_search() -> None:
    """Softmax of logits (x, 0, 0, 0, 0) leads by 0.3 from x = log 2.5 + ... on, for good."""
    backbone = searching(search=1.0)
    logits = backbone._logits_of("depth", "normals")
    # Of 5 kinds one leads by (e^x - 1) / (e^x + 4); 0.3 at e^x = 2.2 / 0.7.
    edge = torch.tensor(2.2 / 0.7).log()
    for shift, settled in ((-0.01, {}), (0.01, {"depth": {"normals": "local"}})):
        with torch.no_grad():
            logits.zero_()[2] = edge + shift
        backbone.at_progress(0.1)
        assert backbone.get_extra_state()["settled"] == settled
    with torch.no_grad():
        logits.zero_()[4] = 9.0
    backbone.at_progress(0.2)
    parts = backbone._parts("depth")
    assert parts["normals"] == {"local": None}
    assert len(parts["segmentation"]) == 4
    assert backbone.genotype()["depth"]["normals"] == "local"
    restored = searching(search=1.0)
    restored.load_state_dict(backbone.state_dict())
    assert restored.genotype() == backbone.genotype()
    ran = called(backbone)
    backbone(torch.rand(IMAGES), ["depth"])
    assert {kind for source, kind in ran if source == KEYS["normals"]} == {"local"}


def called(backbone: ATRC) -> list[tuple[str, str]]:
    """Return a list that receives (source, kind) of every context that is computed."""
    ran: list[tuple[str, str]] = []
    for refinement in backbone.refinements.values():
        for source, kinds in refinement.contexts.items():
            for kind, context in kinds.items():
                context.register_forward_hook(lambda *_, at=(source, kind[:-8]): ran.append(at))
    return ran


def test_evaluation_gathers_the_likeliest_kinds_alone() -> None:
    backbone = set_logits(searching(), GENOTYPE, 0.1)
    backbone(torch.rand(IMAGES), NAMES)
    backbone.eval()
    ran = called(backbone)
    backbone(torch.rand(IMAGES), ["depth"])
    assert ran == [(KEYS["segmentation"], "t_label"), (KEYS["normals"], "s_label")]


def fused_maps(backbone: ATRC, images: Tensor) -> Tensor:
    coarse, fine = backbone.encoder(images, NAMES).shared
    return torch.cat([fine, F.interpolate(coarse, fine.shape[2:], mode="bilinear")], dim=1)


def test_maps_are_those_of_the_equations() -> None:
    """From torch's functions and the state alone; contexts have a test of their own."""
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    backbone = given().double()
    with torch.no_grad():
        for refinement in backbone.refinements.values():
            refinement.gathered[0].weight.uniform_(0.5, 1.5)
    backbone(images, NAMES)
    backbone.eval()
    weights = backbone.state_dict()

    def norm(prefix: str, x: Tensor) -> Tensor:
        mean, variance, scale, shift = (
            weights[f"{prefix}.{name}"].reshape(-1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    fused = fused_maps(backbone, images)
    maps, where = {}, {}
    for name, key in KEYS.items():
        x = F.conv2d(fused, weights[f"branches.{key}.0.weight"], padding=1)
        maps[name] = norm(f"branches.{key}.1", x).relu()
        x = F.conv2d(fused, weights[f"labels.{key}.hidden.0.weight"])
        x = norm(f"labels.{key}.hidden.1", x).relu()
        x = F.conv2d(
            x, weights[f"labels.{key}.logits.weight"], weights[f"labels.{key}.logits.bias"]
        )
        where[name] = x.flatten(2).softmax(2)
    features = backbone(images, NAMES)
    for target, row in GENOTYPE.items():
        prefix = f"refinements.{KEYS[target]}"
        gathered, matrices = [], []
        for source, kind in row.items():
            if kind == "none":
                continue
            labels = {"t-label": where[target], "s-label": where[source]}.get(kind)
            context = backbone.refinements[KEYS[target]].context(source, kind)
            gathered.append(context(maps[target], maps[source], labels, scaled=True))
            matrices.append(weights[f"{prefix}.projections.{KEYS[source]}.weight"])
        # As published: one convolution of all side by side, twice.
        x = F.conv2d(torch.cat(gathered, 1), torch.cat(matrices, 1))
        x = torch.cat([maps[target], norm(f"{prefix}.gathered.0", x)], 1)
        both = torch.cat(
            [weights[f"{prefix}.own.weight"], weights[f"{prefix}.gathered.1.weight"]], 1
        )
        expected = norm(f"{prefix}.join.0", F.conv2d(x, both)).relu()
        torch.testing.assert_close(features.of(target), (expected,))


def test_predictions_on_the_way_do_not_reach_the_encoder() -> None:
    backbone = given()
    early = backbone(torch.rand(IMAGES), NAMES).early
    assert [*early] == NAMES
    loss = torch.stack([one.prediction.square().sum() for (one,) in early.values()]).sum()
    reached = torch.autograd.grad(loss, [*backbone.parameters()], allow_unused=True)
    names = [n for n, _ in backbone.named_parameters()]
    found = {n.split(".")[0] for n, g in zip(names, reached, strict=True) if g is not None}
    assert found == {"labels"}


def test_labels_are_there_only_where_they_are_gathered_by() -> None:
    by_source = {"normals": {"depth": "s-label"}, "segmentation": {"segmentation": "t-label"}}
    backbone = searching(genotype=by_source)
    assert [*backbone.labels] == [KEYS["segmentation"], KEYS["depth"]]
    assert [*backbone(torch.rand(IMAGES), NAMES).early] == ["segmentation", "depth"]
    own = {n: {id(p) for p in backbone.task_parameters(n)} for n in NAMES}
    known = backbone.labels[KEYS["depth"]]
    assert {id(p) for p in known.readout.parameters()} <= own["depth"]
    assert not {id(p) for p in known.hidden.parameters()} & set.union(*own.values())
    alone = backbone.labels[KEYS["segmentation"]]
    assert {id(p) for p in alone.parameters()} <= own["segmentation"]


def test_the_genotype_is_kept_and_all_else_begins_anew() -> None:
    backbone = set_logits(searching(), GENOTYPE, 0.3)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in [p for n, p in backbone.named_parameters() if "logits.task" not in n]:
            parameter.add_(torch.randn_like(parameter))
    backbone(torch.rand(IMAGES), NAMES)
    before = {name: x.clone() for name, x in backbone.state_dict().items() if name[-1] != "_"
              and isinstance(x, Tensor)}  # fmt: skip
    assert backbone.at_progress(0.49) is None
    assert backbone._genotype is None
    change = backbone.at_progress(0.5)
    assert change is not None
    assert change.reset_heads
    assert change.reset_balancer
    assert backbone.genotype() == GENOTYPE
    for name, parameter in backbone.named_parameters():
        kept = name.startswith("logits.")
        assert (name in change.reset) is not kept
        assert torch.equal(parameter, before[name]) is kept, name
    for name, x in backbone.named_buffers():
        if name.endswith("running_var"):
            assert bool((x == 1).all()), name
    assert backbone.at_progress(0.9) is None
    # Drawn as a network of the genotype alone draws them.
    for target, row in GENOTYPE.items():
        refinement = backbone.refinements[KEYS[target]]
        sources = sum(kind != "none" for kind in row.values())
        for source, kind in row.items():
            if kind != "none":
                largest = refinement.projections[KEYS[source]].weight.abs().max().item()
                assert 0.7 * (3 * sources) ** -0.5 < largest <= (3 * sources) ** -0.5
    ran = called(backbone)
    backbone(torch.rand(IMAGES), NAMES)
    assert ran == [
        (KEYS[source], kind.replace("-", "_"))
        for row in GENOTYPE.values()
        for source, kind in row.items()
        if kind != "none"
    ]


def test_after_the_search_it_computes_what_a_given_genotype_does() -> None:
    first = set_logits(searching(), GENOTYPE, 0.3)
    first.at_progress(0.5)
    second = given()
    state = {n: x for n, x in first.state_dict().items() if n in second.state_dict()}
    second.load_state_dict(state)
    assert {n for n, _ in second.named_parameters()} <= {n for n, _ in first.named_parameters()}
    images = torch.rand(IMAGES)
    for training in (True, False):
        found = []
        for backbone in (first, second):
            torch.manual_seed(7)  # of dropout
            features = backbone.train(training)(images, NAMES)
            found.append([x for name in NAMES for x in features.of(name)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_channels_are_dropped_after_the_search_alone() -> None:
    images = torch.rand(IMAGES)

    def dropped(backbone: ATRC) -> int:
        (x,) = backbone(images, ["depth"]).of("depth")
        (y,) = backbone(images, ["depth"]).of("depth")
        return int(((x.amax((2, 3)) == 0) != (y.amax((2, 3)) == 0)).sum())

    assert dropped(given(dropout=0.5)) > 0
    assert dropped(given(dropout=0.0)) == 0
    assert dropped(searching(dropout=0.9)) == 0


def test_a_run_may_train_what_another_searched() -> None:
    first = set_logits(searching(search=1.0), GENOTYPE, 0.3)
    assert first.at_progress(0.999) is None
    second = searching(search=0.0)
    second.load_state_dict(first.state_dict())
    assert second.at_progress(0.0) is not None
    assert second.genotype() == GENOTYPE
    with pytest.raises(UsageError, match=r"name that run by initial\.run"):
        searching(search=0.0).at_progress(0.0)


def test_weights_of_a_file_are_not_lost_silently() -> None:
    class Pretrained(TinyPyramid):
        def facts(self) -> dict[str, str]:
            return {"weights": "somewhere.safetensors"}

    with pytest.raises(UsageError, match="weights are read of a file"):
        ATRC(TINY_TASKS, backbone=Pretrained)
    ATRC(TINY_TASKS, backbone=Pretrained, search=1.0)
    ATRC(TINY_TASKS, backbone=Pretrained, genotype=GENOTYPE)


def test_a_given_genotype_has_no_phases() -> None:
    assert not given().has_phases
    assert searching().has_phases
    assert given().at_progress(0.9) is None


def test_what_is_recorded_is_how_likely_each_kind_is() -> None:
    backbone = set_logits(searching(), GENOTYPE, 1.0)
    values = backbone.current_values()
    assert set(values) == {f"{kind}/{source}" for kind in KINDS for source in NAMES}
    e = torch.e
    assert values["local/normals"] == pytest.approx(
        {"segmentation": e / (e + 4), "depth": 1 / (e + 4), "normals": 1 / (e + 3)}
    )
    assert set(values["s-label/depth"]) == {"segmentation", "normals"}
    backbone.at_progress(0.5)
    assert backbone.current_values() == {}


def test_any_number_of_tasks() -> None:
    for count in (1, 2):
        tasks = TINY_TASKS[:count]
        names = [task.name for task in tasks]
        backbone = ATRC(tasks, backbone=TinyPyramid, channels=4, window=3)
        assert set(backbone(torch.rand(IMAGES), names).early) == set(names)
        backbone.at_progress(0.5)
        assert backbone(torch.rand(IMAGES), names).of(names[0])[0].shape == (2, 4, 8, 12)
    alone = {
        id(p) for p in ATRC(TINY_TASKS[:1], backbone=TinyPyramid).task_parameters("segmentation")
    }
    assert alone  # a lone task shares its encoder with nobody, and everything else is its own


def test_the_last_shared_layers_are_those_of_the_maps() -> None:
    backbone = searching()
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    assert last == [f"branches.{key}.0.weight" for key in KEYS.values()]
    few = searching(genotype={"depth": {"normals": "local"}})
    names = {id(p): name for name, p in few.named_parameters()}
    last = [names[id(p)] for p in few.last_shared_parameters()]
    assert last == ["encoder.levels.1.weight", "encoder.levels.1.bias"]


def test_logits_learn_at_a_constant_rate_and_do_not_decay() -> None:
    (group,) = searching(rate=3.0).parameter_groups()
    assert (group["lr_scale"], group["weight_decay"], group["schedule"].name) == (3, 0, "constant")
    assert len(group["params"]) == 9
    assert not [*given().parameter_groups()]


@pytest.mark.parametrize(
    "found",
    [pytest.param(False, id="searching", marks=pytest.mark.slow), pytest.param(True, id="given")],
)
def test_it_can_be_exported(found: bool) -> None:
    """Names of modules are names of Python's in a program."""

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = given() if found else set_logits(searching(), GENOTYPE, 0.3)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = self.backbone(images, NAMES)
            return tuple(features.of(name)[0] for name in NAMES)

    maps = Maps()
    maps(torch.rand(IMAGES))
    maps.eval()
    images = torch.rand(IMAGES)
    program = torch.export.export(maps, (images,), strict=False).module()
    for one, other in zip(program(images), maps(images), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("over", [PYRAMID, partial(ResNet, depth=18, width=1 / 32)])
def test_any_size_through_the_model(over: partial) -> None:
    backbone = ATRC(TINY_TASKS, backbone=over, channels=4, window=3)
    info = FeatureInfo.of(backbone)
    model = MultiTaskModel(
        TINY_TASKS, backbone, {t.name: PointwiseHead(t, info) for t in TINY_TASKS}
    )
    found = model(torch.rand(2, 3, 33, 45), NAMES)
    assert {tuple(x.shape[2:]) for x in found.values()} == {(33, 45)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backbone.genotype: no task named 'depht'.*'depth'"):
        searching(genotype={"depth": {"depht": "local"}})
    with pytest.raises(UsageError, match="window: 4 is even"):
        searching(window=4)
    with pytest.raises(UsageError, match="MLP gives no maps to attend to"):
        ATRC(TINY_TASKS, backbone=partial(MLP, inputs=3))
    backbone = ATRC(TINY_TASKS, backbone=partial(UNet, width=1 / 32), channels=4).eval()
    with pytest.raises(UsageError, match=r"UNet gives tasks maps of their own.*decoder=none"):
        backbone(torch.rand(1, 3, 16, 16), NAMES)

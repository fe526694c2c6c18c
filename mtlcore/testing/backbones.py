"""What holds for every backbone.

One class is one file: subclassing it is the whole interface.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.inputs import Inputs, map_inputs
from mtlcore.models import Backbone, ExchangePoint
from mtlcore.plugins import settings_of
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    changes,
    check_groups,
    close,
    gradients_of,
    same,
    scramble,
    state_of,
    through_checkpoint,
)
from mtlcore.testing.tiny import TINY_TASKS, any_names

_STEPS = tuple(number / 20 for number in range(21))


class BackboneContract:
    """Subclass it, write `make`, and pytest checks the backbone.

    Attributes:
        tasks: that it is made for; three or more, so that "some of them" means something.
        input_channels: of its inputs, where these are images.
        unreached: beginnings of the names of parameters that no task's loss ever reaches. Those
            that do not require gradients need not be listed.
    """

    tasks: tuple[Task, ...] = TINY_TASKS
    input_channels: int = 3
    unreached: tuple[str, ...] = ()

    def make(self, tasks: Sequence[Task]) -> Backbone:
        """Return a backbone for these tasks, small enough for a test."""
        raise NotImplementedError

    def inputs(self, backbone: Backbone, batch: int = 2) -> Inputs:
        """Return random inputs of so many samples; override it for what reads no images.

        Args:
            backbone: that reads them.
            batch: number of samples, along the first dimension of every tensor.
        """
        return self._images(backbone, batch, self._sizes(backbone)[0])

    def test_maps_are_as_announced(self) -> None:
        """Otherwise heads are built for other channels, or predict at another resolution."""
        for count in (1, len(self.tasks)):
            backbone = self._new(count=count)
            assert len(backbone.out_channels) == len(backbone.strides) > 0, (
                f"{len(backbone.out_channels)} channels for {len(backbone.strides)} strides"
            )
            if not self._reads_images():
                self._check_channels(backbone, self._names(count))
                continue
            assert -len(backbone.strides) <= backbone.main_map < len(backbone.strides), (
                f"main_map is {backbone.main_map}, of {len(backbone.strides)} maps"
            )
            for stride in filter(None, backbone.strides):
                assert backbone.input_multiple % stride == 0, (
                    f"input_multiple {backbone.input_multiple} is no multiple of stride {stride}: "
                    "an input that the model lets pass would not fit"
                )
            for size in self._sizes(backbone):
                inputs = self._inputs(backbone, size=size)
                features = backbone(inputs, self._names(count))
                for task in self._names(count):
                    maps = features.of(task)
                    expected = [
                        (len(inputs), c, size[0] // s, size[1] // s) if s else (len(inputs), c)
                        for c, s in zip(backbone.out_channels, backbone.strides, strict=True)
                    ]
                    shapes = [tuple(x.shape) for x in maps]
                    assert shapes == expected, (
                        f"maps of {task} for inputs of {size[0]}x{size[1]} have shapes {shapes}, "
                        f"announced are {expected}"
                    )

    def test_early_predictions_fit_their_tasks(self) -> None:
        """Otherwise a task's loss cannot judge them, or judges what nobody asked for."""
        backbone = self._new()
        inputs = self._inputs(backbone)
        by_name = {task.name: task for task in self.tasks}
        for asked in (self._names(), self._names()[:1]):
            early = backbone(inputs, asked).early
            assert set(early) <= set(asked), f"early predictions of {set(early) - set(asked)}"
            for name, predictions in early.items():
                task = by_name[name]
                for number, one in enumerate(predictions):
                    what = f"early prediction {number} of {name}"
                    shape, dimensions = one.prediction.shape, 4 if task.layout == "map" else 2
                    assert shape[:2] == (len(inputs), task.channels) and len(shape) == dimensions, (
                        f"{what} has shape {tuple(shape)}; the task has {task.channels} channels "
                        f"and the layout {task.layout!r}"
                    )
                    assert 0 <= one.weight < math.inf, f"{what} has the weight {one.weight}"

    def test_terms_are_finite_scalars(self) -> None:
        """Otherwise every step is skipped."""
        backbone = self._new()
        for asked in (self._names(), self._names()[:1]):
            for name, term in backbone(self._inputs(backbone), asked).terms.items():
                assert term.shape == (), f"the term {name} has shape {tuple(term.shape)}"
                assert bool(term.isfinite()), f"the term {name} is not finite"

    def test_evaluation_has_nothing_to_train_with(self) -> None:
        """Otherwise evaluating and predicting cost time for what nobody looks at."""
        backbone = self._used()
        with torch.no_grad():
            features = backbone(self._inputs(backbone), self._names())
        assert not features.early, "early predictions in evaluation mode: ask self.training"
        assert not features.terms, "terms in evaluation mode: ask self.training"

    def test_samples_do_not_see_one_another_in_evaluation(self) -> None:
        """Otherwise metrics depend on how the validation split is cut into batches."""
        backbone = self._used()
        inputs = self._inputs(backbone, batch=3)
        together = self._evaluated(backbone, inputs)
        apart = [
            self._evaluated(
                backbone, map_inputs(partial(torch.narrow, dim=0, start=i, length=1), inputs)
            )
            for i in range(3)
        ]
        for number, whole in enumerate(together):
            parts = torch.cat([maps[number] for maps in apart])
            assert close(whole, parts, 1e-4), "a sample's features depend on its batch"

    def test_only_the_tasks_asked_for_are_needed(self) -> None:
        """Otherwise a task without labels costs time, or a lone task gets other features."""
        backbone = self._used()
        inputs = self._inputs(backbone)
        for task in self._names():
            with torch.no_grad():
                alone = backbone(inputs, [task]).of(task)
                among = backbone(inputs, self._names()).of(task)
            assert all(close(a, b, 1e-5) for a, b in zip(alone, among, strict=True)), (
                f"the features of {task} change with the other tasks that are asked for"
            )

    def test_absent_tasks_leave_no_trace(self) -> None:
        """Otherwise the batch norm of a task remembers batches that it has no labels in."""
        backbone = self._new()
        first, *others = self._names()
        owned = [m for task in others for m in self._modules_of(backbone, task)]
        before = [state_of(module) for module in owned]
        backbone(self._inputs(backbone), [first])
        for module, state in zip(owned, before, strict=True):
            moved = changes(state, state_of(module))
            assert not moved, f"{moved} of a task that was not asked for changed"

    def test_the_input_stays_as_it_was(self) -> None:
        """Otherwise whoever reads the batch next sees another image."""
        backbone = self._new()
        inputs = self._inputs(backbone)
        before = map_inputs(Tensor.clone, inputs)
        backbone(inputs, self._names())
        assert same(inputs, before), "the input was edited in place"

    def test_plain_images_are_finite(self) -> None:
        """Otherwise a black photograph costs a step, or stops the evaluation."""
        for value in (0.0, 1.0):
            for backbone in (self._new(), self._used()):
                inputs = map_inputs(partial(_filled, value=value), self._inputs(backbone))
                features = backbone(inputs, self._names())
                loss = self._whole_loss(features)
                maps = [x for task in self._names() for x in features.of(task)]
                tensors = [*maps, *gradients_of(loss, list(backbone.parameters()))]
                assert all(bool(x.isfinite().all()) for x in tensors if x is not None), (
                    f"features or gradients of an image that is {value} everywhere are not finite"
                )

    def test_a_forward_pass_changes_buffers_only(self) -> None:
        """Otherwise a step that is skipped leaves its trace: the core restores buffers alone."""
        for training in (True, False):
            backbone = self._new().train(training)
            before = state_of(backbone)
            backbone(self._inputs(backbone), self._names())
            allowed = {name for name, _ in backbone.named_buffers()} if training else set()
            moved = sorted(set(changes(before, state_of(backbone))) - allowed)
            mode = "training" if training else "evaluation"
            assert not moved, f"a forward pass in {mode} changes {moved}"

    def test_tasks_may_have_any_name(self) -> None:
        """Otherwise a task called "type" stops the run: torch's containers refuse such names."""
        tasks = any_names(self.tasks)
        torch.manual_seed(0)
        backbone = self.make(tasks)
        features = backbone(self._inputs(backbone), [task.name for task in tasks])
        assert all(features.of(task.name) for task in tasks), "a task without maps"

    def test_task_parameters_are_honest(self) -> None:
        """Otherwise another task's gradient is lost, or a task's head start counts as shared."""
        for backbone in self._phases():
            own = {task: list(backbone.task_parameters(task)) for task in self._names()}
            numbers = [id(p) for parameters in own.values() for p in parameters]
            assert len(numbers) == len(set(numbers)), "a parameter belongs to two tasks"
            names = {id(p): name for name, p in backbone.named_parameters()}
            assert set(numbers) <= set(names), "a task's parameter is none of the backbone's"
            features = backbone(self._inputs(backbone), self._names())
            for task in self._names():
                loss = self._loss(features, task)
                for owner, parameters in own.items():
                    gradients = gradients_of(loss, parameters)
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        name = names[id(parameter)]
                        if owner == task:
                            meant = not parameter.requires_grad or name.startswith(self.unreached)
                            assert meant or gradient is not None, (
                                f"{task}'s loss does not reach its {name}"
                            )
                        else:
                            assert gradient is None or not bool(gradient.any()), (
                                f"{name} is declared as {owner}'s own, but {task}'s loss reaches it"
                            )

    def test_last_shared_parameters_are_shared(self) -> None:
        """Otherwise balancing there compares nothing, or what only one task has."""
        for backbone in self._phases():
            last = list(backbone.last_shared_parameters())
            if not last:
                continue
            names = {id(p): name for name, p in backbone.named_parameters()}
            assert {id(p) for p in last} <= set(names), "one of them is none of the backbone's"
            own = {id(p) for task in self._names() for p in backbone.task_parameters(task)}
            private = [names[id(p)] for p in last if id(p) in own]
            assert not private, f"{private} belong to one task alone"
            if not any(p.requires_grad for p in last):
                continue
            features = backbone(self._inputs(backbone), self._names())
            for task in self._names():
                gradients = gradients_of(self._loss(features, task), last)
                assert any(g is not None and bool(g.any()) for g in gradients), (
                    f"{task}'s loss reaches none of the last shared parameters"
                )

    def test_each_parameter_is_in_one_block(self) -> None:
        """Otherwise `balancer.depth` leaves out gradients, or counts them twice."""
        for backbone in self._phases():
            blocks = [[id(p) for p in block] for block in backbone.trunk_blocks()]
            listed = [number for block in blocks for number in block]
            if not listed:
                continue
            names = {id(p): name for name, p in backbone.named_parameters()}
            twice = [names[n] for n in names if listed.count(n) > 1]
            assert not twice, f"{twice} are in two blocks"
            assert set(listed) <= set(names), "one of them is none of the backbone's"
            missing = [names[n] for n in names if n not in set(listed)]
            assert not missing, f"{missing} are in no block"

    def test_every_parameter_is_reached(self) -> None:
        """Otherwise parts of the network never learn; list in `unreached` what is meant so."""
        reached: set[str] = set()
        missing: set[str] = set()
        for backbone in self._phases():
            named = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
            features = backbone(self._inputs(backbone), self._names())
            gradients = gradients_of(self._whole_loss(features), list(named.values()))
            reached |= {n for n, g in zip(named, gradients, strict=True) if g is not None}
            missing |= set(named)
        lost = sorted(n for n in missing - reached if not n.startswith(self.unreached))
        assert not lost, f"no task's loss reaches {lost}"

    def test_the_cut_is_crossed(self) -> None:
        """Otherwise balancing on features misses what flows past the cut, or counts it twice."""
        backbone = self._new()
        features = backbone(self._inputs(backbone), self._names())
        if not features.cut:
            return
        own = {id(p) for task in self._names() for p in backbone.task_parameters(task)}
        shared = [p for p in backbone.parameters() if id(p) not in own]
        for task in self._names():
            loss = self._loss(features, task)
            cut = gradients_of(loss, features.cut)
            pairs = [(x, g) for x, g in zip(features.cut, cut, strict=True) if g is not None]
            whole = gradients_of(loss, shared)
            through = gradients_of([x for x, _ in pairs], shared, [g for _, g in pairs])
            for direct, passed in zip(whole, through, strict=True):
                one, other = (torch.zeros(()) if g is None else g for g in (direct, passed))
                gap = float((one - other).abs().max())
                largest = max((float(g.abs().max()) for g in whole if g is not None), default=0.0)
                assert gap <= 1e-4 * largest, (
                    f"{task}'s gradient through the cut is not its whole gradient"
                )

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new())

    def test_layers_are_of_its_own_parameters(self) -> None:
        """Otherwise rates that fall from layer to layer miss a layer, or hold for two."""
        backbone = self._new()
        names = {id(p): name for name, p in backbone.named_parameters()}
        seen: set[int] = set()
        for number, layer in enumerate(backbone.layer_groups()):
            ids = {id(p) for p in layer}
            assert ids, f"layer group {number} is empty"
            assert ids <= names.keys(), f"layer group {number} holds what is none of the backbone's"
            twice = [names[i] for i in ids & seen]
            assert not twice, f"{twice} are in two layer groups"
            seen |= ids

    def test_exchange_points_are_where_maps_pass(self) -> None:
        """Otherwise networks side by side exchange what no head sees, or never meet."""
        backbone = self._new()
        try:
            points = backbone.exchange_points()
        except UsageError:  # as it is set, it can exchange nothing
            return
        seen: list[tuple[int, Tensor]] = []

        def look(_module: nn.Module, _inputs: object, output: object, *, number: int) -> None:
            seen.append((number, points[number].map_in(output)))

        hooks = [
            point.module.register_forward_hook(partial(look, number=number))
            for number, point in enumerate(points)
        ]
        inputs = self._inputs(backbone)
        backbone(inputs, self._names())
        for hook in hooks:
            hook.remove()
        assert [n for n, _ in seen] == [*range(len(points))], (
            f"exchange points {[n for n, _ in seen]} were passed, of {len(points)}, in this order"
        )
        names = {id(p): name for name, p in backbone.named_parameters()}
        before: list[Parameter] = []
        for point, (number, x) in zip(points, seen, strict=True):
            found = x.shape[point.layout.index("C")] if x.dim() == len(point.layout) else None
            assert found == point.channels, (
                f"exchange point {number}: {point.channels} channels of {point.layout} announced, "
                f"and the map has the shape {tuple(x.shape)}"
            )
            before += point.parameters
            unknown = [p for p in point.parameters if id(p) not in names]
            assert not unknown, f"exchange point {number} has parameters of others"
            known = {id(p) for p in before}
            assert len(known) == len(before), f"a parameter of exchange point {number} comes twice"
            later = [p for p in backbone.parameters() if id(p) not in known and p.requires_grad]
            for parameter, gradient in zip(later, gradients_of(x.sum(), later), strict=True):
                assert gradient is None, (
                    f"exchange point {number} does not name {names[id(parameter)]}, which its map "
                    "depends on"
                )
        backbone = self._used()
        kept = self._evaluated(backbone, inputs)
        for number, point in enumerate(backbone.exchange_points()):
            hook = point.module.register_forward_hook(partial(_emptied, point), prepend=True)
            changed = self._evaluated(backbone, inputs)
            hook.remove()
            assert not same(kept, changed), (
                f"zeros in place of the map of exchange point {number} change no feature"
            )

    def test_residual_blocks_add_a_branch(self) -> None:
        """Otherwise tasks get a part of something else, or leave out more than a branch."""
        backbone = self._used()
        seen: list[tuple[int, Tensor, Tensor]] = []
        blocks, kept = backbone.residual_blocks(), []

        def look(_module: nn.Module, inputs: Any, output: Tensor, *, number: int) -> None:
            seen.append((number, inputs[0].clone(), output))

        for number, block in enumerate(blocks):
            module = backbone.get_submodule(block.name)
            kept.append(module.register_forward_hook(partial(look, number=number)))
            last = backbone.get_submodule(block.last)
            kept.append(last.register_forward_hook(lambda _module, _inputs, y: 0 * y))
        with torch.no_grad():
            backbone(self._inputs(backbone), self._names())
        for hook in kept:
            hook.remove()
        assert [n for n, *_ in seen] == [*range(len(blocks))], (
            f"residual blocks {[n for n, *_ in seen]} were passed, of {len(blocks)}, in this order"
        )
        for block, (_, x, y) in zip(blocks, seen, strict=True):
            with torch.no_grad():
                past = x if block.shortcut is None else backbone.get_submodule(block.shortcut)(x)
            assert past.shape[1] == block.channels == y.shape[1], (
                f"{block.name}: {block.channels} channels announced, its map has {y.shape[1]}"
            )
            assert close(y, past, 1e-5) or close(y, past.relu(), 1e-5), (
                f"{block.name}: without {block.last} its map is not that of its shortcut"
            )

    def test_what_it_tells_is_text(self) -> None:
        """Otherwise `run.json` and `mtl show` cannot hold it."""
        facts = self._new().facts()
        odd = [k for k, v in facts.items() if not isinstance(k, str) or not isinstance(v, str)]
        assert not odd, f"facts {odd} are no text"

    def test_what_is_recorded_of_it_are_numbers_of_its_tasks(self) -> None:
        """Otherwise the run stops at its first record."""
        for backbone in self._phases():
            for name, values in backbone.current_values().items():
                strange = set(values) - {*self._names()}
                assert not strange, f"{name} has values of {strange}, which are none of its tasks"
                odd = [task for task, value in values.items() if not isinstance(value, float)]
                assert not odd, f"{name} of {odd} is no number"

    def test_first_weights_are_settings(self) -> None:
        """Otherwise a run reads a file that it needs no more."""
        backbone = self._new()
        known = {setting.name: setting.default for setting in settings_of(type(backbone))}
        for name in backbone.first_weights:
            assert known.get(name, ...) in (None, "none"), (
                f"{name} is no setting that is None, or 'none', by default"
            )

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run goes on with another network, or enters its phase again."""
        names = tuple(self._names())
        context = BalancerContext(tasks=names, present=names, losses=dict.fromkeys(names, 1.0))
        for fraction in (0.0, 1.0):
            torch.manual_seed(1)
            backbone = self._used()
            backbone.at_progress(fraction)
            self._train(backbone)
            backbone.after_step(context)
            state = through_checkpoint({"backbone": dict(backbone.state_dict())})["backbone"]
            restored = self._new(seed=2)
            restored.load_state_dict(state)
            assert restored.at_progress(fraction) is None, (
                f"at progress {fraction} a restored backbone changes itself once more: whether it "
                "has done so must be part of its state"
            )
            inputs = self._inputs(backbone)
            assert same(self._evaluated(backbone, inputs), self._evaluated(restored, inputs)), (
                "a backbone restored from its state gives other features"
            )

    def test_transitions_say_what_they_change(self) -> None:
        """Otherwise the optimizer goes on with the moments of weights that are gone."""
        backbone = self._new()
        for fraction in _STEPS:
            scramble(backbone.parameters())
            before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
            change = backbone.at_progress(fraction)
            named = dict(backbone.named_parameters())
            moved = {name for name, p in named.items() if not same(before.get(name), p.detach())}
            said = set(change.reset) if change else set()
            assert said <= set(named), f"at progress {fraction}: no parameters {said - set(named)}"
            assert moved == said, (
                f"at progress {fraction}: {sorted(moved)} changed, {sorted(said)} were named"
            )
            assert backbone.at_progress(fraction) is None, (
                f"at progress {fraction} it changes itself twice"
            )

    def _new(self, seed: int = 0, count: int | None = None) -> Backbone:
        torch.manual_seed(seed)
        return self.make(self.tasks[:count]).train()

    def _names(self, count: int | None = None) -> list[str]:
        return [task.name for task in self.tasks[:count]]

    def _used(self) -> Backbone:
        """In evaluation mode, its running statistics those of a few batches."""
        backbone = self._new()
        self._train(backbone)
        return backbone.eval()

    def _train(self, backbone: Backbone) -> None:
        backbone.train()
        with torch.no_grad():
            for _ in range(2):
                backbone(self._inputs(backbone), self._names())

    def _phases(self) -> Iterator[Backbone]:
        """Yield a backbone at the start and after every change that it makes to itself."""
        backbone = self._new()
        yield backbone
        for fraction in _STEPS:
            if backbone.at_progress(fraction) is not None:
                yield backbone

    def _sizes(self, backbone: Backbone) -> list[tuple[int, int]]:
        """Odd and even multiples of what it asks for, 16 or more pixels a side."""
        multiple = backbone.input_multiple
        least = -(-16 // multiple)
        return [(multiple * n, multiple * (n + 1)) for n in (least, least + 1)]

    def _reads_images(self) -> bool:
        return type(self).inputs is BackboneContract.inputs

    def _check_channels(self, backbone: Backbone, names: Sequence[str]) -> None:
        features = backbone(self._inputs(backbone), names)
        for task in names:
            found = [tuple(x.shape[:2]) for x in features.of(task)]
            expected = [(2, channels) for channels in backbone.out_channels]
            assert found == expected, (
                f"maps of {task} begin with {found} (samples, channels), announced are {expected}"
            )

    def _inputs(
        self, backbone: Backbone, batch: int = 2, size: tuple[int, int] | None = None
    ) -> Inputs:
        return self.inputs(backbone, batch) if size is None else self._images(backbone, batch, size)

    def _images(self, backbone: Backbone, batch: int, size: tuple[int, int]) -> Tensor:
        return torch.rand(batch, self.input_channels, *size)

    def _evaluated(self, backbone: Backbone, inputs: Inputs) -> list[Tensor]:
        backbone.eval()
        with torch.no_grad():
            features = backbone(inputs, self._names())
        return [maps for task in self._names() for maps in features.of(task)]

    @staticmethod
    def _loss(features: Features, task: str) -> Tensor:
        """Of the maps that the task's head reads, and of its early predictions."""
        early = [one.prediction for one in features.early.get(task, ())]
        maps = [*features.of(task), *early]
        return torch.stack([(x * torch.randn_like(x)).sum() for x in maps]).sum()

    def _whole_loss(self, features: Features) -> Tensor:
        losses = [self._loss(features, task) for task in self._names()]
        return torch.stack([*losses, *features.terms.values()]).sum()

    @staticmethod
    def _modules_of(backbone: Backbone, task: str) -> list[nn.Module]:
        own: set[int] = {id(p) for p in backbone.task_parameters(task)}

        def holds(module: nn.Module) -> bool:
            parameters: list[Parameter] = list(module.parameters(recurse=False))
            return any(id(p) in own for p in parameters)

        return [module for module in backbone.modules() if holds(module)]


def _emptied(point: ExchangePoint, _module: nn.Module, _inputs: object, output: object) -> object:
    """Return zeros in place of the map that a module returned."""
    return point.with_map(output, torch.zeros_like(point.map_in(output)))


def _filled(inputs: Tensor, value: float) -> Tensor:
    """Return inputs that are the same everywhere; integers, which say which one, stay."""
    return torch.full_like(inputs, value) if inputs.is_floating_point() else inputs

"""ATRC: what each task attends to in the map of every other one is searched for, then trained.

Bruggemann, Kanakis, Obukhov, Georgoulis and Van Gool, "Exploring Relational Context for Multi-Task
Dense Prediction", ICCV 2021 (arXiv 2104.13874), with the layers of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.models import (
    Backbone,
    Transition,
    WrappingBackbone,
    is_exporting,
    joined,
    shared_maps,
)
from mtlcore.optimizers import Schedule
from mtlcore.ranges import Channels, Decay, Fraction, Nested, Positive, ProperFraction, Range
from mtlcore.tasks import Task, refuse_unknown_tasks
from mtlcore_atrc.contexts import KINDS, Kind
from mtlcore_atrc.labels import Labels
from mtlcore_atrc.refinement import Parts, Refinement

#: Name of a target -> name of a source -> what the target gathers from it.
Genotype: TypeAlias = Mapping[str, Mapping[str, Kind]]

Weight = Annotated[float, Range()]
Window = Annotated[int, Range(ge=1, le=99)]
LabelCount = Annotated[int, Range(ge=2, le=10_000)]


@final
class ATRC(WrappingBackbone):
    """Adaptive task-relational context, over the maps of any encoder.

    All maps of the encoder are enlarged to the finest stride and put side by side; of those each
    task computes a map of its own by a 3x3 convolution. Every task then gathers from the map of
    every task, its own too, one kind of context: nothing ("none"), from all places ("global"), from
    a window ("local"), or from the labels of the task that gathers ("t-label") or of the one that
    is gathered from ("s-label"), which a coarse prediction on the way tells, whose loss counts as
    much as that of the final one and does not reach the encoder. What is gathered is joined with
    the task's map (`Refinement`), of which its head makes the final prediction; with the head
    `pointwise` that is the published network.

    Which kind is searched for. While searching, target t gathers from source s the mean of all
    kinds with weights drawn by Gumbel-softmax, with g from a Gumbel distribution,

        softmax((logits_ts + g) / temperature).

    Logits learn in the same steps as all else. The temperature falls evenly from `temperature` to
    `cold`. Added to the total loss is the mean over all pairs of the entropy of softmax(logits_ts),
    times a weight that changes evenly from the first to the second value of `entropy`: at first all
    kinds are kept likely, in the end one of them. Once the likeliest kind of a pair leads the next
    one by `margin`, it alone is gathered there for the rest of the search. In evaluation the
    likeliest kinds are gathered.

    When the search is over, these are the genotype, and everything but the logits, heads too,
    begins anew: the network is trained from scratch. Kinds that are left out are not computed.

    Args:
        tasks: of the run.
        backbone: the encoder, any backbone whose maps all tasks share, with its settings, such as
            {name = "resnet", depth = 18, pyramid = true}.
        genotype: what is given instead of searched for: for each target a table with the kind of
            context of each source, such as {depth = {depth = "local", normals = "global"}}. What is
            left out is "none".
        search: part of the run that searches. 1: the whole run; 0: it trains the genotype that a
            run before found, named by `initial.run`, from the first step on.
        temperature: of Gumbel-softmax, at the beginning of the search.
        cold: at its end.
        entropy: weight of the entropy of the logits, at the beginning and at the end of the search.
        margin: how much likelier than the next one a kind must be to be settled.
        rate: learning rate of the logits divided by that of the networks; it is constant.
        channels: of every task's map; unset: a quarter of those of all maps of the encoder.
        window: height and width of the window of a local context, odd.
        labels: number of labels of a task that has neither classes nor shares, such as depth.
        dropout: of channels of the joined maps, after the search.

    Raises:
        UsageError: a genotype of tasks that the run has not, an even window, an encoder without
            maps, or weights of a file that would be lost when all begins anew.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        genotype: Genotype | None = None,
        search: Fraction = 0.5,
        temperature: Positive = 1.0,
        cold: Positive = 0.05,
        entropy: tuple[Weight, Weight] = (-0.02, 0.06),
        margin: ProperFraction = 0.3,
        rate: Positive = 1.0,
        channels: Channels | None = None,
        window: Window = 9,
        labels: LabelCount = 40,
        dropout: Decay = 0.05,
    ) -> None:
        super().__init__()
        self._tasks, self._keys = tuple(tasks), {task.name: task.key for task in tasks}
        self._names = tuple(self._keys)
        if window % 2 == 0:
            raise UsageError(f"model.backbone.window: {window} is even, and it has no middle")
        self.encoder = backbone(tasks)
        self.input_kind = self.encoder.input_kind
        self.input_multiple = self.encoder.input_multiple
        info = FeatureInfo.of(self.encoder)
        if self.input_kind != "image" or not info.pyramid:
            raise UsageError(
                f"model.backbone.backbone: {type(self.encoder).__name__} gives no maps to attend "
                "to; choose a backbone of images (mtl list backbones)"
            )
        # Finest first, as they are put side by side.
        self._places = tuple(reversed(info.pyramid))
        inputs = sum(info.channels[place] for place in self._places)
        width = channels or max(1, inputs // 4)
        self.out_channels, self.strides = (width,), (info.strides[self._places[0]],)
        self._given = genotype is not None
        self._genotype = None if genotype is None else _whole(genotype, self._names)
        if not self._given and search < 1 and "weights" in self.encoder.facts():
            raise UsageError(
                "model.backbone.search: after the search all begins anew, at random, and weights "
                "are read of a file; let the whole run search (search=1), and give what it finds "
                "to another run (model.backbone.genotype)"
            )
        self._settings: dict[str, Any] = {
            "backbone": backbone,
            "channels": channels,
            "window": window,
            "labels": labels,
            "dropout": dropout,
        }
        self._until, self._hot, self._cold = search, temperature, cold
        self._entropy, self._margin, self._rate = entropy, margin, rate
        self._done = 0.0
        self._settled: dict[str, dict[str, Kind]] = {}
        self._possible = {
            target: {source: self._kinds(target, source) for source in self._names}
            for target in self._names
        }
        self.branches = nn.ModuleDict(
            {
                key: nn.Sequential(
                    nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
                for key in self._keys.values()
            }
        )
        self.labels = nn.ModuleDict(
            {
                task.key: Labels(task, inputs, labels)
                for task in tasks
                if self._is_labelled(task.name)
            }
        )
        self.refinements = nn.ModuleDict(
            {
                task.key: Refinement(
                    task,
                    tasks,
                    {s: kinds[1:] for s, kinds in self._possible[task.name].items()},
                    channels=width,
                    inner=max(1, width // 2),
                    window=window,
                    dropout=dropout,
                )
                for task in tasks
            }
        )
        self.logits = nn.ModuleDict()
        if not self._given:
            # Equal ones: at first no kind is likelier than another.
            self.logits.update(
                {
                    self._keys[target]: nn.ParameterDict(
                        {
                            self._keys[source]: nn.Parameter(torch.zeros(len(kinds)))
                            for source, kinds in self._possible[target].items()
                        }
                    )
                    for target in self._names
                }
            )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`.

        The cut is the map of every task, and the logits of labels that several tasks learn by;
        there is none where the encoder predicts early.

        Raises:
            UsageError: the encoder gives tasks maps of their own.
        """
        found: Features = self.encoder(inputs, tasks)
        shared = shared_maps("model.backbone.backbone", self.encoder, found)
        fused = _side_by_side([shared[place] for place in self._places])
        parts = {task: self._parts(task) for task in tasks}
        read = {*tasks, *(source for of_target in parts.values() for source in of_target)}
        maps = {task: self.branches[key](fused) for task, key in self._keys.items() if task in read}
        logits = {task: self.labels[self._keys[task]](fused) for task in self._labelled(parts)}
        where = {task: x.flatten(2).softmax(2) for task, x in logits.items()}
        own = {
            task: (
                self.refinements[self._keys[task]](
                    maps, where, parts[task], searching=self._genotype is None
                ),
            )
            for task in tasks
        }
        cut = (*maps.values(), *(x for task, x in logits.items() if self._is_known(task)))
        if found.early:
            cut = ()
        if not self.training:
            return Features(per_task=own, cut=cut)
        early = {task: list(several) for task, several in found.early.items()}
        for task in (task for task in tasks if task in logits):
            prediction = self._labels_of(task).predict(logits[task])
            early.setdefault(task, []).append(EarlyPrediction(prediction))
        terms = dict(found.terms)
        if self._genotype is None and tasks:
            terms["entropy"] = self.entropy_weight(self._done) * self._mean_entropy()
        return Features(per_task=own, cut=cut, early=early, terms=terms)

    def genotype(self) -> dict[str, dict[str, Kind]]:
        """Return what each target gathers from each source; while searching, the likeliest."""
        return {
            target: {source: self._kind(target, source) for source in self._names}
            for target in self._names
        }

    def heat(self, done: float) -> float:
        """Return the temperature after a part of the search, 0 to 1."""
        return self._hot + (self._cold - self._hot) * min(done, 1.0)

    def entropy_weight(self, done: float) -> float:
        """Return the weight of the entropy after a part of the search, 0 to 1."""
        first, last = self._entropy
        return first + (last - first) * min(done, 1.0)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the encoder."""
        return (self.encoder,)

    @property
    def has_phases(self) -> bool:
        """Whether contexts are searched for, or the encoder has phases."""
        return not self._given or self.encoder.has_phases

    def at_progress(self, fraction: float) -> Transition | None:
        """Settle what leads; at the first step after the search keep it, and begin anew.

        Raises:
            UsageError: nothing was searched.
        """
        inside = super().at_progress(fraction)
        if self._genotype is not None:
            return inside
        self._done = fraction / self._until if self._until else 1.0
        if fraction < self._until:
            self._settle()
            return inside
        return joined(inside, self._keep())

    def current_values(self) -> Mapping[str, Mapping[str, float]]:
        """Return the probability of each kind of context, by source."""
        found = dict(super().current_values())
        if self._genotype is None:
            for target, of_target in self._possible.items():
                for source, kinds in of_target.items():
                    chances = self._logits_of(target, source).detach().float().softmax(0).tolist()
                    for kind, chance in zip(kinds, chances, strict=True):
                        name = f"{kind}/{source}"
                        found[name] = {**found.get(name, {}), target: chance}
        return found

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder, what joins its map with what it gathers, its logits, what
        makes its coarse prediction of labels, and its map and labels if no other task may gather by
        them.
        """
        key = self._keys[task]
        own = [self.encoder.task_parameters(task), self.refinements[key].parameters()]
        if not self._given:
            own.append(self.logits[key].parameters())
        if key in self.labels:
            labels = self._labels_of(task)
            own.append((labels.readout if self._is_known(task) else labels).parameters())
        if not self._is_read(task):
            own.append(self.branches[key].parameters())
        return chain.from_iterable(own)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the convolution of every task's map.

        If there is a task whose map no other one may read, they are those of the encoder.
        """
        if not all(self._is_read(task) for task in self._names):
            return self.encoder.last_shared_parameters()
        return [self.branches[key].get_parameter("0.weight") for key in self._keys.values()]

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the logits, which learn at a constant rate of their own and do not decay."""
        if not self._given:
            yield {
                "params": [*self.logits.parameters()],
                "lr_scale": self._rate,
                "weight_decay": 0.0,
                "schedule": Schedule(name="constant"),
            }

    def get_extra_state(self) -> dict[str, Any]:
        """Return the genotype, None while it is searched for, and what is settled of it."""
        return {"genotype": self._genotype, "settled": self._settled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned; a genotype that is given stays."""
        if not self._given:
            self._genotype, self._settled = state["genotype"], state["settled"]

    def _kinds(self, target: str, source: str) -> tuple[Kind, ...]:
        """Return the kinds that a target may gather from a source, "none" first."""
        if self._genotype is not None:
            kind = self._genotype[target][source]
            return ("none",) if kind == "none" else ("none", kind)
        # Of one task alone, labels of target and source are the same.
        return KINDS[:-1] if target == source else KINDS

    def _is_read(self, task: str) -> bool:
        """Return whether another task may gather from the task's map."""
        return any(
            len(of_target[task]) > 1 for name, of_target in self._possible.items() if name != task
        )

    def _is_known(self, task: str) -> bool:
        """Return whether another task may gather by the task's labels."""
        return any(
            "s-label" in of_target[task]
            for name, of_target in self._possible.items()
            if name != task
        )

    def _is_labelled(self, task: str) -> bool:
        own = self._possible[task]
        by_itself = any("t-label" in kinds for kinds in own.values()) or "s-label" in own[task]
        return by_itself or self._is_known(task)

    def _labelled(self, parts: Mapping[str, Parts]) -> list[str]:
        """Return the tasks whose labels are computed, in their order.

        While searching in training those of all tasks that are asked for, whose coarse predictions
        learn even if nothing is gathered by them.
        """
        found = set(parts) if self._genotype is None and self.training else set[str]()
        for target, of_target in parts.items():
            for source, kinds in of_target.items():
                found |= {target} if "t-label" in kinds else set()
                found |= {source} if "s-label" in kinds else set()
        return [name for name in self._names if name in found]

    def _parts(self, target: str) -> Parts:
        """Return what a target gathers in this pass, without what is nothing."""
        found: dict[str, dict[Kind, Tensor | None]] = {}
        for source, kinds in self._possible[target].items():
            if self._genotype is not None:
                kind: Kind | None = self._genotype[target][source]
            elif self.training:
                kind = self._settled.get(target, {}).get(source)
            elif is_exporting():
                kind = None
            else:
                kind = self._kind(target, source)
            if kind is None:
                weights = self._weights(target, source)
                found[source] = dict(zip(kinds[1:], weights[1:], strict=True))
            elif kind != "none":
                found[source] = {kind: None}
        return found

    def _kind(self, target: str, source: str) -> Kind:
        """Return what one target gathers from one source; while searching, the likeliest."""
        if self._genotype is not None:
            return self._genotype[target][source]
        settled = self._settled.get(target, {}).get(source)
        likeliest = self._possible[target][source][int(self._logits_of(target, source).argmax())]
        return settled or likeliest

    def _weights(self, target: str, source: str) -> Tensor:
        """Draw the weights of the kinds, "none" first; in a program, those of evaluation."""
        logits = self._logits_of(target, source).float()
        if not self.training:
            return F.one_hot(logits.argmax(), len(logits)).to(logits.dtype)
        return F.gumbel_softmax(logits, tau=self.heat(self._done))

    def _mean_entropy(self) -> Tensor:
        found = [
            -(x.float().softmax(0) * x.float().log_softmax(0)).sum()
            for x in self.logits.parameters()
        ]
        return torch.stack(found).mean()

    def _settle(self) -> None:
        """Settle every pair of tasks whose likeliest kind leads by the margin."""
        pairs = [(t, s) for t in self._names for s in self._names if not self._is_settled(t, s)]
        if not pairs:
            return
        best = [self._logits_of(t, s).detach().float().softmax(0).topk(2) for t, s in pairs]
        leads = torch.stack([values[0] - values[1] for values, _ in best]).tolist()
        places = torch.stack([indices[0] for _, indices in best]).tolist()
        for (target, source), lead, place in zip(pairs, leads, places, strict=True):
            if lead >= self._margin:
                kind = self._possible[target][source][place]
                self._settled.setdefault(target, {})[source] = kind

    def _is_settled(self, target: str, source: str) -> bool:
        return source in self._settled.get(target, {})

    def _keep(self) -> Transition:
        """Keep the genotype, and let everything but the logits begin anew."""
        if not self._until and not any(bool(x.any()) for x in self.logits.parameters()):
            raise UsageError(
                "model.backbone.search: 0 trains what a run before found, and nothing has been "
                "searched: name that run by initial.run, or give model.backbone.genotype"
            )
        self._genotype = self.genotype()
        fresh = ATRC(self._tasks, **self._settings)
        for target, of_target in self._genotype.items():
            refinement = fresh.refinements[self._keys[target]]
            assert isinstance(refinement, Refinement)
            refinement.draw([source for source, kind in of_target.items() if kind != "none"])
        state = {
            name: x
            for name, x in fresh.state_dict().items()
            if name != "_extra_state" and not name.startswith("logits.")
        }
        self.load_state_dict(state, strict=False)
        names = tuple(n for n, _ in self.named_parameters() if not n.startswith("logits."))
        return Transition(reset=names, reset_heads=True, reset_balancer=True)

    def _labels_of(self, task: str) -> Labels:
        found = self.labels[self._keys[task]]
        assert isinstance(found, Labels)
        return found

    def _logits_of(self, target: str, source: str) -> Parameter:
        of_target = self.logits[self._keys[target]]
        assert isinstance(of_target, nn.ParameterDict)
        found: Parameter = of_target[self._keys[source]]
        return found


def _side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Enlarge maps to the size of the first one, and put all side by side."""
    size = maps[0].shape[2:]
    enlarged = [F.interpolate(x, size, mode="bilinear") for x in maps[1:]]
    return torch.cat([maps[0], *enlarged], dim=1)


def _whole(genotype: Genotype, names: Sequence[str]) -> dict[str, dict[str, Kind]]:
    """Return a genotype of all pairs of tasks.

    Raises:
        UsageError: it names a task that there is not.
    """
    named = [*genotype, *(source for of_target in genotype.values() for source in of_target)]
    refuse_unknown_tasks("model.backbone.genotype", named, names)
    return {
        target: {source: genotype.get(target, {}).get(source, "none") for source in names}
        for target in names
    }

"""Balancers of gradients, wrong on purpose, and the contracts that catch them.

One file: every fault is held against the same two contracts.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore.balancing import GradientBalancer, GramianBalancer, Tentative
from mtlcore.testing import GradientBalancerContract, GramianBalancerContract


class Mean(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)


class DividesByZero(Mean):
    def weights(self, gramian, context=None):
        return gramian.diagonal().rsqrt()


class AbsoluteThreshold(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian) / (gramian.diagonal() > 1e-20)


class TrustsSymmetry(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian) * torch.equal(gramian, gramian.T)


class Single(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian).float()


class FirstTaskOnly(Mean):
    def weights(self, gramian, context=None):
        return torch.eye(len(gramian), dtype=torch.float64)[0]


class TurnsAround(Mean):
    def weights(self, gramian, context=None):
        return -super().weights(gramian)


class EditsTheGramian(Mean):
    def weights(self, gramian, context=None):
        gramian.fill_diagonal_(1)
        return super().weights(gramian)


class RandomWeights(Mean):
    def weights(self, gramian, context=None):
        return torch.rand(len(gramian), dtype=torch.float64)


class MovesStateEarly(Mean):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def weights(self, gramian, context=None):
        self.steps += 1
        return super().weights(gramian)


class LosesItsAverage(Mean):
    steps = 1

    def weights(self, gramian, context=None):
        return super().weights(gramian) / self.steps

    def after_step(self, context):
        self.steps += 1


class DependsOnSize(Mean):
    def weights(self, gramian, context=None):
        return super().weights(gramian) + gramian.diagonal()


class RemembersTheFirst(Mean):
    first = None

    def weights(self, gramian, context=None):
        self.first = gramian if self.first is None else self.first
        return (self.first + gramian).diagonal()


class WaitsForItsTasks(Mean):
    def prepare(self, tasks, data=None):
        self.count = len(tasks)

    def weights(self, gramian, context=None):
        return super().weights(gramian) / self.count


class KeepsMultipliersByName(Mean):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.name, torch.ones(()))


class NoStatus(Mean):
    status = "fine"


class Invert(Mean):
    def weights(self, gramian, context=None):
        return 1 / torch.linalg.det(gramian).expand(len(gramian)) ** 8


class KeepsTheGramianItself(Mean):
    """Learns in every step from the Gramian that it was asked with last."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.seen = None

    def weights(self, gramian, context=None):
        self.seen = gramian
        return super().weights(gramian, context) * self.scale

    def after_step(self, context):
        if self.seen is not None:
            self.scale = 0.5 * self.scale + 0.5 * self.seen.trace()


class KeepsWhatWasSkipped(Mean):
    """Uses a running mean in the step that makes it, and keeps it whatever becomes of the step."""

    def __init__(self):
        super().__init__()
        self.mean = torch.ones((), dtype=torch.float64)

    def weights(self, gramian, context=None):
        self.mean = 0.5 * self.mean + 0.5 * gramian.trace()
        return super().weights(gramian, context) * self.mean


class RunningMean(Mean):
    """The same as it should be."""

    def __init__(self):
        super().__init__()
        self.state = Tentative()

    def weights(self, gramian, context=None):
        before = self.state.get("mean", like=gramian)
        mean = gramian.trace() if before is None else 0.5 * before + 0.5 * gramian.trace()
        self.state.propose("mean", mean)
        return super().weights(gramian, context) * mean

    def after_step(self, context):
        self.state.commit()


class WeighsByMetrics(Mean):
    """Weighs by the mean validation loss, and forgets it when the run is resumed."""

    found = 1.0

    def weights(self, gramian, context=None):
        return super().weights(gramian) * self.found

    def after_evaluation(self, metrics):
        self.found = sum(values["loss"] for values in metrics.values()) / len(metrics)


class GroupsTwice(Mean):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def parameter_groups(self):
        return [{"params": [self.scale, self.scale]}]


class Compares(Mean):
    """Weighs by how alike the gradients of two batches are, and by those of validation."""

    batches = 2
    validation = "train"

    def weights(self, gramian, context=None):
        validated, own = context.validation_products()
        kept = context.gramians[0, 1].diagonal() + validated.diagonal() + own
        return 0.5 + 0.5 * torch.nan_to_num(kept / gramian.trace()).sigmoid()


class LooksAtOneBatchOnly(Compares):
    def weights(self, gramian, context=None):
        context.validation_products()
        return Mean.weights(self, gramian)


class NeverValidates(Compares):
    def weights(self, gramian, context=None):
        return 2 + context.gramians[0, 1].diagonal().sign()


class ForgetsToAnnounceBatches(Mean):
    def weights(self, gramian, context=None):
        given = context is not None and context.gramians is not None
        return 1 + torch.nan_to_num((context.gramians[0, 1] if given else gramian).diagonal()).cos()


class ForgetsToAnnounceValidation(Mean):
    def weights(self, gramian, context=None):
        if context is not None and context.validation_products is not None:
            gramian, _ = context.validation_products()
        return super().weights(gramian)


class NeedsHalfABatch(Compares):
    batches = 0.5


class WantsAnotherSplit(Compares):
    validation = "test"


class ComparesFeatures(Compares):
    scope = "features"


class AnswersForTooMany(Compares):
    def weights(self, gramian, context=None):
        return super().weights(gramian, context).expand(3, 2, -1)


GRAMIAN_BALANCERS = [
    (TrustsSymmetry, "test_rounding_of_products_matters_little", "differ by rounding"),
    (LooksAtOneBatchOnly, "test_batches_are_as_announced", "never reads context.gramians"),
    (NeverValidates, "test_batches_are_as_announced", "never calls context.validation_products"),
    (ForgetsToAnnounceBatches, "test_batches_are_as_announced", "announce how many"),
    (ForgetsToAnnounceValidation, "test_batches_are_as_announced", "announce where"),
    (NeedsHalfABatch, "test_batches_are_as_announced", "0.5 is no number of batches"),
    (WantsAnotherSplit, "test_batches_are_as_announced", "'test' is not a split"),
    (ComparesFeatures, "test_batches_are_as_announced", "nothing in common"),
    (AnswersForTooMany, "test_any_number_of_tasks", "weights of shape"),
    (KeepsTheGramianItself, "test_steps_between_updates", "asked every other step"),
    (KeepsWhatWasSkipped, "test_a_skipped_step_leaves_no_trace", "a step that was skipped"),
    (GroupsTwice, "test_its_groups_are_of_its_own_parameters", "in two groups"),
    (DividesByZero, "test_finite_for_degenerate_gradients", "a zero row: weights"),
    (AbsoluteThreshold, "test_finite_at_every_scale", "of size 1e-12"),
    (Single, "test_any_number_of_tasks", "torch.float32"),
    (FirstTaskOnly, "test_order_of_tasks_does_not_matter", "another order"),
    (FirstTaskOnly, "test_weights_move_with_their_tasks", "another order"),
    (TurnsAround, "test_agreeing_tasks_are_not_turned_around", "all tasks agree"),
    (EditsTheGramian, "test_input_stays_as_it_was", "edited in place"),
    (RandomWeights, "test_randomness_comes_from_the_generator", "global generator"),
    (MovesStateEarly, "test_state_moves_in_after_step_only", "before after_step"),
    (LosesItsAverage, "test_state_comes_back", "its state is not whole"),
    (WeighsByMetrics, "test_state_comes_back", "its state is not whole"),
    (WeighsByMetrics, "test_evaluations_may_lack_values", "it answers"),
    (DependsOnSize, "test_scale_of_all_gradients_does_not_matter", "turns the direction"),
    (RemembersTheFirst, "test_tasks_come_and_go", "size"),
    (WaitsForItsTasks, "test_needs_no_preparation", "count"),
    (KeepsMultipliersByName, "test_tasks_may_have_any_name", "type"),
    (NoStatus, "test_finite_for_degenerate_gradients", "fine"),
    (Invert, "test_finite_at_every_scale", "of size 1e-12"),
]


@pytest.mark.parametrize(("component", "test", "message"), GRAMIAN_BALANCERS)
def test_gramian_balancers(component, test, message, held_to, catches):
    catches(held_to(GramianBalancerContract, component), test, message)


def test_a_claim_can_be_switched_off(held_to, passes):
    contract = held_to(GramianBalancerContract, FirstTaskOnly, permutation_equivariant=False)
    passes(contract)


def test_a_good_gramian_balancer_passes(held_to, passes):
    passes(held_to(GramianBalancerContract, Mean))


def test_a_balancer_that_compares_batches_passes(held_to, passes):
    passes(held_to(GramianBalancerContract, Compares))


def test_state_that_is_used_at_once_passes(held_to, passes):
    passes(held_to(GramianBalancerContract, RunningMean, scale_equivariant=False))


class SignVote(GradientBalancer):
    """Keeps a coordinate where enough tasks agree on its sign."""

    granularity = "element"

    def combine(self, rows, context=None):
        return rows.sum(0) * (rows.sign().mean(0).abs() >= 0.4)


class RandomVote(SignVote):
    """Keeps every coordinate with probability one half."""

    def combine(self, rows, context=None):
        draws = torch.rand(rows.shape[1], generator=self.random(context), dtype=rows.dtype)
        return rows.sum(0) * (draws < 0.5)


class OnlyCallsItselfElementwise(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) / rows.norm().clamp(min=1e-30)


class DividesByNorm(SignVote):
    def combine(self, rows, context=None):
        return (rows / rows.norm(dim=1, keepdim=True)).sum(0)


class EditsItsRows(SignVote):
    def combine(self, rows, context=None):
        return rows.mul_(2).sum(0)


class AlwaysDouble(SignVote):
    def combine(self, rows, context=None):
        return super().combine(rows).double()


class GoesUphill(SignVote):
    def combine(self, rows, context=None):
        return -super().combine(rows)


class VotesAtRandom(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) * (torch.rand(rows.shape[1]) < 0.5)


class FewTasks(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) / (len(rows) < 40)


class RemembersItsRows(SignVote):
    before = None

    def combine(self, rows, context=None):
        self.before = rows if self.before is None else self.before + rows
        return self.before.sum(0)


class KeepsMemoryByName(SignVote):
    def prepare(self, tasks, data=None):
        for task in tasks:
            self.register_buffer(task.name, torch.ones(()))


class TrustsTheFirst(SignVote):
    def combine(self, rows, context=None):
        return rows[0]


class AbsoluteQuorum(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) * (rows.abs().mean(0) > 0.5)


class SquaresItsRows(SignVote):
    def combine(self, rows, context=None):
        return (rows * rows.abs() ** 30).sum(0)


class CountsEarly(SignVote):
    def __init__(self):
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def combine(self, rows, context=None):
        self.asked += 1
        return super().combine(rows)


class DividesByMetrics(SignVote):
    """Divides by the mean validation loss, and forgets it when the run is resumed."""

    found = 1.0

    def combine(self, rows, context=None):
        return super().combine(rows) / self.found

    def after_evaluation(self, metrics):
        self.found = sum(values["loss"] for values in metrics.values()) / len(metrics)


class AveragesInSecret(SignVote):
    steps = 1

    def combine(self, rows, context=None):
        return super().combine(rows) / self.steps

    def after_step(self, context):
        self.steps += 1


class VotesByTheLastRows(SignVote):
    """Learns in every step from the rows that it was asked with last."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.seen = None

    def combine(self, rows, context=None):
        self.seen = rows.sum()
        return super().combine(rows, context) * self.scale

    def after_step(self, context):
        if self.seen is not None:
            self.scale = 0.5 * self.scale + self.seen


class VotesByWhatWasSkipped(SignVote):
    def __init__(self):
        super().__init__()
        self.mean = torch.ones((), dtype=torch.float64)

    def combine(self, rows, context=None):
        self.mean = 0.5 * self.mean + rows.square().sum()
        return super().combine(rows, context) * self.mean


class HasANegativeRate(SignVote):
    def __init__(self):
        super().__init__()
        self.quorum = nn.Parameter(torch.ones(()))

    def parameter_groups(self):
        return [{"params": [self.quorum], "lr": -0.1}]


class VotesOverTwoBatches(SignVote):
    batches = 2


class AveragesRows(GradientBalancer):
    """The sum of running means of rows, as long as their number of columns stays."""

    def __init__(self):
        super().__init__()
        self.state = Tentative()

    def combine(self, rows, context=None):
        means = 0.5 * rows
        if context is not None:
            for mean, task in zip(means, context.present, strict=True):
                old = self.state.get(task, like=mean)
                if old is not None and old.shape == mean.shape:
                    mean.add_(old, alpha=0.5)
                self.state.propose(task, mean)
        return means.sum(0)

    def after_step(self, context):
        self.state.commit()


class AveragesWholeRows(AveragesRows):
    constant_columns = True


class NormalisesColumns(SignVote):
    def combine(self, rows, context=None):
        return rows.sum(0) / rows.abs().amax(0)


GRADIENT_BALANCERS = [
    (AveragesRows, "test_columns_have_no_identity", "`constant_columns`"),
    (NormalisesColumns, "test_columns_that_nobody_reaches", "columns are zeros"),
    (VotesOverTwoBatches, "test_batches_are_as_announced", "only a balancer of Gramians"),
    (VotesByTheLastRows, "test_steps_between_updates", "asked every other step"),
    (VotesByWhatWasSkipped, "test_a_skipped_step_leaves_no_trace", "a step that was skipped"),
    (HasANegativeRate, "test_its_groups_are_of_its_own_parameters", "rate of -0.1"),
    (OnlyCallsItselfElementwise, "test_element_means_element", "other values"),
    (DividesByNorm, "test_finite_for_degenerate_gradients", "a zero row: not finite"),
    (EditsItsRows, "test_input_stays_as_it_was", "edited in place"),
    (AlwaysDouble, "test_single_precision", "torch.float64 out"),
    (GoesUphill, "test_agreeing_tasks_are_not_turned_around", "all tasks agree"),
    (VotesAtRandom, "test_randomness_comes_from_the_generator", "global generator"),
    (FewTasks, "test_any_number_of_tasks", "40 tasks: not finite"),
    (RemembersItsRows, "test_tasks_come_and_go", "size"),
    (KeepsMemoryByName, "test_tasks_may_have_any_name", "type"),
    (TrustsTheFirst, "test_order_of_tasks_does_not_matter", "another order"),
    (AbsoluteQuorum, "test_scale_of_all_gradients_does_not_matter", "turns the direction"),
    (SquaresItsRows, "test_finite_at_every_scale", "not finite"),
    (CountsEarly, "test_state_moves_in_after_step_only", "before after_step"),
    (AveragesInSecret, "test_state_comes_back", "its state is not whole"),
    (DividesByMetrics, "test_state_comes_back", "its state is not whole"),
    (DividesByMetrics, "test_evaluations_may_lack_values", "it answers"),
]


@pytest.mark.parametrize(("component", "test", "message"), GRADIENT_BALANCERS)
def test_gradient_balancers(component, test, message, held_to, catches):
    catches(held_to(GradientBalancerContract, component), test, message)


@pytest.mark.parametrize("component", [SignVote, RandomVote, AveragesWholeRows])
def test_good_gradient_balancers_pass(component, held_to, passes):
    passes(held_to(GradientBalancerContract, component))


@pytest.mark.parametrize(
    ("contract", "faults"),
    [(GramianBalancerContract, GRAMIAN_BALANCERS), (GradientBalancerContract, GRADIENT_BALANCERS)],
)
def test_every_check_catches_something(contract, faults, catch_all):
    catch_all(contract, faults)

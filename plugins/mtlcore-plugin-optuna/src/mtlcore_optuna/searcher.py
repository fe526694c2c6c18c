"""A searcher that asks Optuna.

Every question is asked of a study in memory that holds the trials of mtlcore's study so far: the
study's directory is the only place that remembers them. So samplers that keep a state beside the
trials (CMA-ES, NSGA-II, quasi-random ones) are not here. Pruners that note something in each trial,
such as successive halving, are shown its evaluations again, one after the other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

from mtlcore.errors import UsageError
from mtlcore.searchers import Choices, FloatRange, Searcher, Setting, Space, Trial

if TYPE_CHECKING:
    import optuna

_SAMPLERS = {"tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}
_PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive-halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
}


@final
class Optuna(Searcher):
    """Chooses settings by one of Optuna's samplers, and stops trials by one of its pruners.

    Args:
        space: The settings to choose.
        objectives: How many values a trial has; with several nothing is pruned.
        seed: Of the sampler; each trial has random numbers of its own.
        sampler: "tpe" (tree-structured Parzen estimator), "gp" (Gaussian process; it needs scipy)
            or "random".
        sampler_options: Further arguments of that sampler, such as `{n_startup_trials = 5}`.
        pruner: "none", "median", "percentile", "successive-halving", "hyperband" or "threshold".
            It sees the objective after each evaluation, with its epoch; lower is better, so that
            the sign of an objective of which higher is better is turned.
        pruner_options: Further arguments of that pruner, such as `{n_warmup_steps = 5}`.

    Raises:
        UsageError: Optuna is missing, an option is unknown, or a pruner has several objectives.
    """

    def __init__(
        self,
        space: Space,
        objectives: int,
        seed: int,
        *,
        sampler: Literal["tpe", "gp", "random"] = "tpe",
        sampler_options: Mapping[str, Any] | None = None,
        pruner: Literal[
            "none", "median", "percentile", "successive-halving", "hyperband", "threshold"
        ] = "none",
        pruner_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._optuna = _imported()
        self._space, self._objectives, self._seed = space, objectives, seed
        self._sampler, self._sampler_options = sampler, dict(sampler_options or {})
        if objectives > 1 and pruner != "none":
            raise UsageError(
                f"search.searcher.pruner: {pruner} needs one objective, and there are "
                f"{objectives}; leave it out"
            )
        self._distributions = {path: self._distribution(one) for path, one in space.items()}
        self._sampler_of(0)  # are the options known?
        self._pruner = self._made("pruners", _PRUNERS[pruner], dict(pruner_options or {}))
        self._prunes = pruner != "none"

    def ask(self, number: int, trials: Sequence[Trial]) -> Mapping[str, Any]:
        """Let the sampler choose."""
        study = self._study(self._sampler_of(number))
        study.add_trials([self._frozen(trial) for trial in trials])
        chosen = study.ask(self._distributions).params
        return {path: _value(self._space[path], chosen[path]) for path in self._space}

    def prunes(self, trial: Trial, trials: Sequence[Trial]) -> bool:
        """Show the pruner all evaluations of the others, then those of the trial."""
        if not self._prunes:
            return False
        study = self._study(self._sampler_of(0))
        answer = False
        for one in (*trials, trial):
            answer = self._replayed(study, one)
        return answer

    def _replayed(self, study: optuna.Study, trial: Trial) -> bool:
        """Let a trial happen again; return what the pruner said last."""
        states = self._optuna.trial.TrialState
        study.add_trial(
            self._optuna.trial.create_trial(
                state=states.RUNNING,
                params=self._params(trial),
                distributions=self._distributions,
            )
        )
        (*_, stored) = study.get_trials(deepcopy=False)
        running = self._optuna.trial.Trial(study, stored._trial_id)
        answer = False
        for epoch, value in sorted(trial.intermediate.items()):
            running.report(value, epoch)
            answer = running.should_prune()
        if trial.status == "finished":
            study.tell(running, trial.values)
        elif trial.status != "running":
            state = states.PRUNED if trial.status == "pruned" else states.FAIL
            study.tell(running, state=state)
        return answer

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        states = self._optuna.trial.TrialState
        state = {
            "running": states.RUNNING,
            "finished": states.COMPLETE,
            "pruned": states.PRUNED,
            "failed": states.FAIL,
        }[trial.status]
        return self._optuna.trial.create_trial(
            state=state,
            params=self._params(trial),
            distributions=self._distributions,
            intermediate_values=dict(trial.intermediate),
            values=trial.values if trial.status == "finished" else None,
        )

    def _params(self, trial: Trial) -> dict[str, Any]:
        return {
            path: _text(value) if isinstance(self._space[path], Choices) else value
            for path, value in trial.parameters.items()
        }

    def _study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        # The name decides in which bracket of hyperband a trial is.
        return self._optuna.create_study(
            study_name="mtlcore",
            sampler=sampler,
            pruner=self._pruner,
            directions=["minimize"] * self._objectives,
        )

    def _sampler_of(self, number: int) -> optuna.samplers.BaseSampler:
        seed = random.Random(f"{self._seed}/{number}").getrandbits(32)
        options = {**self._sampler_options, "seed": seed}
        return self._made("samplers", _SAMPLERS[self._sampler], options)

    def _made(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        try:
            return getattr(getattr(self._optuna, kind), name)(**options)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"search.searcher.{kind.removesuffix('s')}_options: Optuna's {name} does not "
                f"take them: {error}"
            ) from error

    def _distribution(self, setting: Setting) -> optuna.distributions.BaseDistribution:
        of = self._optuna.distributions
        if isinstance(setting, Choices):
            return of.CategoricalDistribution([_text(value) for value in setting.values])
        if isinstance(setting, FloatRange):
            return of.FloatDistribution(setting.low, setting.high, log=setting.log)
        last = setting.at(1.0)
        return of.IntDistribution(setting.low, last, log=setting.log, step=setting.step)


def _imported() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "the searcher optuna needs optuna: pip install mtlcore-plugin-optuna"
        ) from error
    # It would print a line for every study in memory.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _text(value: Any) -> str:
    """Return a choice as Optuna takes it: it may be a table."""
    return json.dumps(value, sort_keys=True, default=str)


def _value(setting: Setting, chosen: Any) -> Any:
    if isinstance(setting, Choices):
        return next(value for value in setting.values if _text(value) == chosen)
    return chosen

"""What holds for every method."""

from __future__ import annotations

import math

from mtlcore.config import RunConfig, resolve, set_layer
from mtlcore.errors import MtlError
from mtlcore.plugins import KINDS, MethodSpec, Plugins
from mtlcore.runs import try_step


class MethodContract:
    """Subclass it, set `method`, and pytest checks that the installed method is whole.

    Attributes:
        method: its name, or "plugin/name".
        overrides: `path=value` that make it small.
        needs_files: whether its data are files that a test does not have.
        given: `path=value` that the method leaves to its user, such as `data.root`; a fixture may
            set it.
    """

    method: str
    overrides: tuple[str, ...] = (
        "data.train=4",
        "data.val=2",
        "data.size=64x64",
        "data.workers=0",
        "training.batch_size=2",
        "device=cpu",
    )
    needs_files: bool = False
    given: tuple[str, ...] = ()

    def test_the_preset_is_a_configuration(self) -> None:
        """Otherwise `mtl run --plugin` refuses the method as it was published."""
        self._resolved()

    def test_it_is_itself(self) -> None:
        """Otherwise the preset does not use what it says it is not itself without."""
        plugins = Plugins.from_environment()
        spec = self._spec(plugins)
        assert spec.summary, "a method needs a summary for mtl list"
        for needed in spec.requires:
            kind, _, name = needed.partition("/")
            assert kind in KINDS, f"requires {needed}: there is no kind {kind!r}"
            try:
                plugins.get(kind, name).load()
            except MtlError as error:
                raise AssertionError(f"requires {needed}: {error}") from error

    def test_it_learns(self) -> None:
        """Otherwise a run stops at its first step: nothing is finite, or nothing fits."""
        if self.needs_files:
            return
        for seed in (0, 1):
            config = self._resolved(*self.overrides, f"seed={seed}")
            try:
                report = try_step(config)
            except MtlError as error:
                raise AssertionError(f"method {self.method}: {error}") from error
            assert report["losses"], "the first step has no loss"
            for task, loss in report["losses"].items():
                assert math.isfinite(loss), f"the loss of {task} is {loss} with seed {seed}"

    def _spec(self, plugins: Plugins) -> MethodSpec:
        spec = plugins.get("methods", self.method).spec
        assert isinstance(spec, MethodSpec)
        return spec

    def _resolved(self, *overrides: str) -> RunConfig:
        layers = [set_layer(values) for values in (self.given, overrides) if values]
        try:
            return resolve(Plugins.from_environment(), [self.method], layers)
        except MtlError as error:
            raise AssertionError(f"method {self.method}: {error}") from error

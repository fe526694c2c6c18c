"""Methods whose papers say something else, and the contract that wants it written down."""

from __future__ import annotations

import pytest

import mtlcore.testing.papers
from mtlcore.plugins import Plugins
from mtlcore.testing import NOT_SAID, PaperContract

METHOD = """
from mtlcore import MethodSpec, hookimpl

@hookimpl
def mtl_methods():
    preset = {
        "balancer": {"name": "dwa"},
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.99]},
        "data": {"augmentations": [{"name": "rotate", "degrees": 20.0}]},
        "training": {"batch_size": 8, "epochs": 3},
    }
    yield MethodSpec(name="reproduced", summary="s", preset=preset)
"""
README = """
The learning rate here is 7.
<!-- deviations -->
* The learning rate is .001; the
  paper has .01. Batches of 8: the paper does not say.
<!-- end of deviations -->
"""
PAPER = {
    "balancer.name": "dwa",
    "balancer.temperature": 2.0,  # a default, which the preset leaves to the balancer
    "optimizer.lr": 1e-2,
    "optimizer.betas": (0.9, 0.99),
    "data.augmentations.0.degrees": 20,
    "training.batch_size": NOT_SAID,
    "training.epochs": 3,
}
DEVIATIONS = {
    "optimizer.lr": "learning rate is .001; the paper has .01",
    "training.batch_size": "Batches of 8: the paper does not say",
}


@pytest.fixture
def held(tmp_path, monkeypatch):
    file, readme = tmp_path / "methods.py", tmp_path / "README.md"
    file.write_text(METHOD)
    readme.write_text(README)
    plugins = Plugins(entry_points=())
    plugins.load_file(str(file))
    monkeypatch.setattr(
        mtlcore.testing.papers.Plugins, "from_environment", classmethod(lambda cls: plugins)
    )

    def contract(paper=None, deviations=None, text=README):
        readme.write_text(text)
        chosen = {"paper": {**PAPER, **(paper or {})}, "deviations": DEVIATIONS}
        if deviations is not None:
            chosen["deviations"] = deviations
        own = {"method": "reproduced", "readme": readme, **chosen}
        return type("TestReproduced", (PaperContract,), own)()

    return contract


def test_papers(held, passes, catches, catch_all) -> None:
    passes(held())
    less = held()
    less.paper = {k: v for k, v in PAPER.items() if "degrees" not in k and "betas" not in k}
    every = (
        (less, "test_the_table_has_every_number_of_the_preset",
         r"lacks optimizer.betas = \[0.9, 0.99\], data.augmentations.0.degrees = 20"),
        (held({"training.epochs": 4}), "test_what_differs_from_the_paper_is_declared",
         "training.epochs is 3, in the paper 4"),
        (held({"balancer.name": "equal"}), "test_what_differs_from_the_paper_is_declared",
         "balancer.name is 'dwa', in the paper 'equal'"),
        (held({"balancer.temperature": 1.0}), "test_what_differs_from_the_paper_is_declared",
         "balancer.temperature is 2.0"),
        (held({"training.epochs": NOT_SAID}), "test_what_differs_from_the_paper_is_declared",
         "training.epochs is 3, in the paper NOT_SAID"),
        (held({"optimizer.lr": 1e-3}), "test_what_is_declared_differs", "optimizer.lr"),
        (held(deviations={"optimizer.lr": "The learning rate here is 7"}),
         "test_what_differs_is_written_down", "README.md does not say of optimizer.lr"),
        (held(deviations={"optimizer.lr": ""}),
         "test_what_differs_is_written_down", "does not say"),
    )  # fmt: skip
    for contract, test, message in every:
        catches(contract, test, message)
    catch_all(PaperContract, every)
    nowhere = held(text="The learning rate is .001; the paper has .01.")
    catches(nowhere, "test_what_differs_is_written_down", "has no section")

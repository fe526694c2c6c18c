"""The loops that docs/how-to/own-loop.md shows: a plain one, and a Lightning module beside it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcore.loading import torchvision_repaired

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-loop.md"
MODEL, PLAIN, LIGHTNING, GUARDED = re.findall(
    r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL
)
EPOCHS = 12


@pytest.fixture(scope="module", autouse=True)
def _torchvision() -> None:
    """Lightning imports torchvision where there is one, and its operators may not load."""
    torchvision_repaired()


def dataset() -> torch.utils.data.TensorDataset:
    """Two tasks that one feature decides."""
    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    score = inputs[:, :1] - inputs[:, 1:2]
    return torch.utils.data.TensorDataset(inputs, 5 * score, (score.sign() + 1).long().flatten())


def loader() -> torch.utils.data.DataLoader[tuple[Tensor, ...]]:
    return torch.utils.data.DataLoader(dataset(), batch_size=8)


def run_plain() -> dict[str, Any]:
    page: dict[str, Any] = {"batches": [batch for _ in range(EPOCHS) for batch in loader()]}
    torch.manual_seed(0)
    exec(MODEL + PLAIN, page)
    return page


def losses(model: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return {task: float(x) for task, x in model.losses(dataset().tensors).items()}


def test_a_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    page = run_plain()
    before, after = losses(page["TwoTasks"]()), losses(page["model"])
    assert all(after[task] < before[task] / 2 for task in before)
    result = page["result"]
    assert result.weights.keys() == before.keys() and min(result.weights.values()) > 0
    assert capsys.readouterr().out.count("converged") == 4 * EPOCHS


@pytest.mark.filterwarnings("ignore:The `srun` command")  # of a machine that has Slurm
def test_a_lightning_module_learns_what_the_plain_loop_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "lightning is not installed (it comes with the extra `test`)"
    lightning = pytest.importorskip("lightning", reason=reason)
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    monkeypatch.chdir(tmp_path)
    page = run_plain()
    torch.manual_seed(0)
    exec(LIGHTNING, page)
    module = page["Balanced"]()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # Advice on workers and devices, and what torch says of how Lightning looks into batches.
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        trainer.fit(module, loader())
    for name, parameter in page["model"].named_parameters():
        assert torch.equal(parameter, module.model.get_parameter(name)), name
    assert trainer.callback_metrics["weight/depth"] == pytest.approx(
        page["result"].weights["depth"], rel=1e-6
    )
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_skipped_as_the_page_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = run_plain()
    before = [p.detach().clone() for p in page["model"].parameters()]
    page["optimizer"].zero_grad()
    for factor in (float("nan"), 1.0):
        found = page["model"].losses(page["batch"])
        page["losses"] = {**found, "segmentation": factor * found["segmentation"]}
        capsys.readouterr()
        exec(GUARDED, page)
        said = capsys.readouterr().out
        after = [p.detach() for p in page["model"].parameters()]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert (said == "skipped: the loss of segmentation is nan\n", same) == (factor != 1,) * 2

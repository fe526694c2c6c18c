"""The commands that use trained runs: `mtl eval` and `mtl predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.errors import UsageError, describe
from mtlcore.system import stop_at_once

_WHICH = click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True,
    help="Use the weights of the best epoch or the last ones.",
)  # fmt: skip
_DEVICE = click.option(
    "--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:1.  [default: the run's]"
)


@click.command("eval")
@click.argument("run")
@click.option("--split", default="val", show_default=True, metavar="NAME", help="The split to use.")
@click.option(
    "--plugin", "files", multiple=True, metavar="FILE", type=click.Path(),
    help="A plugin file (.py): of --set's components or the run's own. Repeatable.",
)  # fmt: skip
@click.option(
    "--set", "assignments", multiple=True, metavar="PATH=VALUE",
    help="Override one value of [data] or [metrics]. Repeatable.",
)  # fmt: skip
@_WHICH
@_DEVICE
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    run: str,
    split: str,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    checkpoint: Any,
    device: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Evaluate a trained RUN.

    Any split will do, and with --set also other data with the same tasks.
    """
    with stop_at_once():
        from mtlcore.config import Layer, set_layer
        from mtlcore.runs import evaluate_run, load_run

        plugins = plugins_of(ctx, trust)
    changes = [Layer("--plugin", {"plugins": list(files)}), set_layer(assignments)]
    trained = load_run(plugins, run, checkpoint, changes, device)
    metrics, size = evaluate_run(trained, split)
    if as_json:
        from mtlcore.storage import without_nan

        data = {"split": split, "samples": size, "metrics": without_nan(metrics)}
        click.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    name = trained.config.dataset.component.spec.name
    click.echo(f"{run} ({checkpoint} checkpoint) on {size} samples of {name} {split}")
    for task, values in metrics.items():
        for metric, value in values.items():
            click.echo(f"  {task:<16} {metric:<16} {value:.4g}")


@click.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--out", required=True, metavar="DIR", help="Folder or URL to write pictures and arrays to."
)
@click.option(
    "--size", metavar="HEIGHTxWIDTH", help="Size of the network's input.  [default: the run's]"
)
@_WHICH
@_DEVICE
@TRUST
@click.pass_context
def predict(
    ctx: click.Context,
    run: str,
    images: tuple[str, ...],
    out: str,
    size: str | None,
    checkpoint: Any,
    device: str | None,
    trust: bool,
) -> None:
    """Predict the tasks of a trained RUN for images.

    Images may have any size; predictions have the size of their image.
    """
    with stop_at_once():
        import fsspec

        from mtlcore.runs import load_run, predict_image, save_prediction

        plugins = plugins_of(ctx, trust)
    network_size = _size(size)
    _check_stems(images)
    trained = load_run(plugins, run, checkpoint, device=device)
    if "://" not in out:
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror})") from error
    for name in images:
        try:
            with fsspec.open(name, "rb") as file:
                data = file.read()
        except IsADirectoryError as error:
            raise UsageError(
                f"{name}: is a folder; name the photographs in it, such as {Path(name) / '*.png'}"
            ) from error
        # KeyError: before fsspec 2026.9, an archive has no such file.
        except (OSError, KeyError, ValueError, ImportError) as error:
            raise UsageError(f"{name}: cannot be read ({describe(error)})") from error
        _, predictions = predict_image(trained, data, name, network_size)
        stem = Path(name).stem
        for path in save_prediction(out, stem, trained.config.tasks, predictions):
            click.echo(path)


def _check_stems(images: Sequence[str]) -> None:
    """Refuse images of the same name: predictions are named after it alone."""
    seen: dict[str, str] = {}
    for name in images:
        other = seen.setdefault(Path(name).stem, name)
        if other != name:
            raise UsageError(
                f"{other} and {name}: their predictions would have the same names; predict them "
                "into different folders (--out)"
            )


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--size {text}: write it as HEIGHTxWIDTH, such as 96x128")
    return int(height), int(width)


COMMANDS = [evaluate, predict]

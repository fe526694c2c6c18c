"""The table `[model]` but for its heads: backbone, neck, and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import Chosen
from mtlcore.config.schema import BackboneConfig, NeckConfig
from mtlcore.errors import did_you_mean, shown
from mtlcore.tasks import Task

#: The name of a neck that is none.
NO_NECK = "none"


def read_backbone(reader: ConfigReader) -> tuple[Chosen | None, BackboneConfig]:
    """Return the backbone, and at which rates it learns."""
    known = _keys(BackboneConfig)
    given = _given(reader, "model.backbone", known)
    rates = reader.build(BackboneConfig, given, "model.backbone")
    return reader.component("backbones", "model.backbone", known), rates or BackboneConfig()


def read_neck(reader: ConfigReader) -> tuple[Chosen | None, NeckConfig]:
    """Return the neck, None where there is none, and how many there are of it."""
    known = _keys(NeckConfig)
    table = reader.table("model.neck")
    if table.get("name") == NO_NECK:
        if settings := [key for key in table if key != "name"]:
            reader.problems.append(
                f"model.neck.{settings[0]}: there is no neck; set model.neck.name (mtl list necks)"
            )
        return None, NeckConfig()
    neck = reader.build(NeckConfig, _given(reader, "model.neck", known), "model.neck")
    chosen = reader.component("necks", "model.neck", known)
    if chosen is not None and neck is not None:
        reader.complete(NeckConfig, "model.neck")
    return chosen, neck or NeckConfig()


def _keys(record: type[Any]) -> list[str]:
    return [field.name for field in attrs.fields(record)]


def _given(reader: ConfigReader, path: str, keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in reader.table(path).items() if key in keys}


def read_freeze(reader: ConfigReader, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Return the parts of the model that do not learn.

    What lies inside a backbone or head is known when it is made, and checked then.
    """
    parts = reader.at("model.freeze")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        reader.problems.append(
            f'model.freeze: expected a list of names, such as ["backbone"], got {shown(parts)}'
        )
        return ()
    neck = [] if reader.table("model.neck").get("name") == NO_NECK else ["neck"]
    heads = {f"heads.{word}" for task in tasks for word in (task.name, task.key)}
    known = ["backbone", *neck, "heads", *(f"heads.{task.name}" for task in tasks)]
    for part in parts:
        words = part.split(".")
        top = ".".join(words[:2]) if words[0] == "heads" else words[0]
        if tasks and top not in {*known, *heads}:
            hint = did_you_mean(top, known)
            reader.problems.append(
                f"model.freeze: the model has no part {part!r}{hint} (it has: {', '.join(known)})"
            )
    if not parts and reader.table("training").get("freeze_until") is not None:
        reader.problems.append(
            "training.freeze_until: says how long what model.freeze names does not learn, and it "
            'names nothing; set model.freeze too, such as ["backbone"]'
        )
    return tuple(parts)

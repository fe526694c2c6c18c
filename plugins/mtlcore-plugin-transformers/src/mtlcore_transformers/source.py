"""Where a model comes from: its configuration, its weights, and what is said of both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, final

import attrs
from torch import Tensor

from mtlcore.errors import ConfigError, MtlError, UsageError, describe, did_you_mean
from mtlcore.loading import HubFile, WeightFile, hub_file, read_weight_file
from mtlcore_transformers.library import model_types, quiet, transformers

_MODEL, _WEIGHTS = "model.backbone.model", "model.backbone.weights"
#: Files of weights, in the order in which they are looked for; an index names the files of shards.
_FILES = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([^\s\"']+)", re.MULTILINE)
#: What settings of the backbone say.
_SAID_OTHERWISE = {
    "out_features": "model.backbone.out_indices",
    "out_indices": "model.backbone.out_indices",
    "num_channels": "model.backbone.in_chans",
    "model_type": _MODEL,
}


@final
@attrs.frozen
class Source:
    """What the setting `model` names.

    Args:
        name: As the setting says.
        kind: A local folder, a repository of the Hugging Face hub, or a mere type of model.
    """

    name: str
    kind: Literal["folder", "repository", "type"]

    @classmethod
    def of(cls, model: str) -> Self:
        """Return what a setting names.

        Raises:
            UsageError: It looks like a folder, and there is none.
        """
        if Path(model).expanduser().is_dir():
            return cls(model, "folder")
        if not model or model.startswith(("/", ".", "~")) or "://" in model:
            raise UsageError(
                f"{_MODEL}: {model!r} is no local folder; name one that save_pretrained wrote, a "
                "repository of the Hugging Face hub or a model type"
            )
        return cls(model, "type" if model in model_types() else "repository")

    def configuration(self, changes: Mapping[str, Any], **own: Any) -> Any:
        """Return the model's configuration.

        Args:
            changes: The setting `config`, by the names that the configuration has.
            own: Values that the backbone sets.

        Raises:
            ConfigError: A change is of nothing that the configuration has, or of no such value.
            MtlError: There is none, or it cannot be fetched.
        """
        plain = self._read({})
        known = plain.to_dict()
        problems = []
        for key in changes:
            if key in _SAID_OTHERWISE:
                problems.append(f"model.backbone.config.{key}: set {_SAID_OTHERWISE[key]} instead")
            elif key not in known:
                problems.append(
                    f"model.backbone.config.{key}: {plain.model_type} has no such value"
                    f"{did_you_mean(str(key), known)}"
                )
        if problems:
            raise ConfigError(problems)
        return self._read({**changes, **own})

    def file(self, names: Sequence[str], setting: str) -> HubFile | None:
        """Return the first of some files of the folder or repository; None where there is none."""
        if self.kind == "repository":
            return hub_file(self.name, names, setting)
        folder = Path(self.name).expanduser()
        found = (folder / name for name in names if self.kind == "folder")
        return next((HubFile(str(p), str(p)) for p in found if p.is_file()), None)

    def weights(self, setting: str) -> WeightFile:
        """Read the weights that the setting `weights` names.

        Args:
            setting: "pretrained" for those of this source; otherwise a folder, or a file's path or
                URL.

        Raises:
            UsageError: A mere type has none.
            MtlError: They are not there, or cannot be read.
        """
        if setting != "pretrained":
            if not Path(setting).is_dir():
                return read_weight_file(setting)
            return Source(setting, "folder").weights("pretrained")
        if self.kind == "type":
            raise UsageError(
                f"{_WEIGHTS}: {self.name!r} is a model type, which has no weights of its own; name "
                f"a folder or a repository of the Hugging Face hub as {_MODEL}, or a file here"
            )
        file = self.file(_FILES, _WEIGHTS)
        if file is None:
            raise MtlError(f"{_WEIGHTS}: {self.name} holds no {', no '.join(_FILES)}")
        if not file.path.endswith(".index.json"):
            return attrs.evolve(read_weight_file(file.path), source=file.source)
        return self._shards(file)

    def normalisation(self) -> tuple[tuple[Sequence[float], Sequence[float]], str]:
        """Return mean and standard deviation of the images that it was trained with, and a text."""
        file = self.file(["preprocessor_config.json"], _MODEL)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if file is None:
            return (mean, std), f"mean {mean}, std {std} (ImageNet's: the model names none)"
        content = json.loads(Path(file.path).read_text("utf-8"))
        if not content.get("do_normalize", True):
            return ((0.0,) * 3, (1.0,) * 3), "none"
        mean = tuple(content.get("image_mean") or mean)
        std = tuple(content.get("image_std") or std)
        return (mean, std), f"mean {mean}, std {std}"

    def licence(self) -> str | None:
        """Return the licence that the model's card names, where the card is at hand."""
        try:
            card = self.file(["README.md"], _MODEL)
        except MtlError:  # without a network a repository's card may not be there, and need not be
            return None
        if card is None:
            return None
        head = Path(card.path).read_text("utf-8").split("\n---", 1)[0]
        found = _LICENCE.search(head)
        return found[1] if found else None

    def _read(self, values: Mapping[str, Any]) -> Any:
        """Return the configuration with some values of one's own.

        Raises:
            UsageError: It does not take the values.
            MtlError: There is none, or it cannot be fetched.
        """
        auto = transformers().AutoConfig
        try:
            with quiet():
                if self.kind == "type":
                    # Some backbones add lists to sizes, whose defaults are tuples.
                    plain = auto.for_model(self.name)
                    sizes = {
                        key: list(getattr(plain, key))
                        for key in plain.to_dict()
                        if key.endswith("sizes") and isinstance(getattr(plain, key), tuple)
                    }
                    return auto.for_model(self.name, **{**sizes, **values})
                if self.kind == "folder":
                    place, revision = str(Path(self.name).expanduser()), ""
                else:
                    place, _, revision = self.name.partition("@")
                return auto.from_pretrained(
                    place, trust_remote_code=False, revision=revision or "main", **values
                )
        except Exception as error:  # the library and its checks raise what they like
            if values:
                raise UsageError(
                    f"model.backbone.config: {self.name} does not take it ({describe(error)})"
                ) from error
            if self.kind == "folder":
                raise MtlError(
                    f"{_MODEL}: {self.name}: no configuration of a model that transformers knows "
                    f"({describe(error)})"
                ) from error
            hint = did_you_mean(self.name, model_types())
            raise MtlError(
                f"{_MODEL}: the Hugging Face hub gives no configuration of {self.name!r} "
                f"({describe(error)}). Without a network, name a local folder; it is no model type "
                f"of transformers either{hint}"
            ) from error

    def _shards(self, index: HubFile) -> WeightFile:
        """Read weights that lie in several files.

        Raises:
            MtlError: One of them is missing, or cannot be read.
        """
        listed = json.loads(Path(index.path).read_text("utf-8"))["weight_map"]
        tensors: dict[str, Tensor] = {}
        hashes = []
        for name in sorted(set(listed.values())):
            file = self.file([name], _WEIGHTS)
            if file is None:
                raise MtlError(f"{index.source}: names {name}, which is not beside it")
            read = read_weight_file(file.path)
            tensors |= read.tensors
            hashes.append(read.sha256)
        return WeightFile(
            source=index.source, sha256=", ".join(hashes), tensors=tensors, ordered=False
        )

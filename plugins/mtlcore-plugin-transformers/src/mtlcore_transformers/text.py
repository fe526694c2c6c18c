"""The text backbone: an encoder of transformers, with a vector per token and their mean."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.features import Features
from mtlcore.models import Backbone, is_exporting
from mtlcore.tasks import Task
from mtlcore_transformers.building import (
    compute_again,
    freeze_unreached,
    layers_of,
    weight_facts,
    with_weights,
)
from mtlcore_transformers.library import mapping
from mtlcore_transformers.source import Source

_MODEL = "model.backbone.model"


@final
class TransformersText(Backbone):
    """A text encoder of transformers, shared by all tasks: its last hidden states and their mean.

    Tasks with a value per text read the mean, tasks with one per token the hidden states; without
    such a task the mean is all there is. Balancers of the scope "features" compare gradients at
    what both are made of.

    Inputs are token ids (B, L) and a mask (B, L) that is true where there is a token; padding has
    no part in the mean. This is how sentence encoders pool (Reimers and Gurevych, "Sentence-BERT",
    EMNLP 2019). Of a model with encoder and decoder it is the encoder; of a language model, whose
    tokens look back only, the mean as well. Layers that no mean depends on do not learn.

    Args:
        model: a local folder that `save_pretrained` wrote, a repository of the Hugging Face hub,
            such as "sentence-transformers/all-MiniLM-L6-v2" (with "@revision" where it matters), or
            a mere type of model, such as "bert", with the library's default configuration.
        weights: "none": random ones; "pretrained": those of the folder or repository; otherwise a
            folder, or the path or fsspec URL of a file. What a head would use is ignored; anything
            else that does not fit is an error.
        config: values of the model's configuration that are to be others, such as
            {num_hidden_layers = 2}.
        gradient_checkpointing: whether to compute hidden states again in the backward pass instead
            of keeping them: less memory, more time.

    Raises:
        UsageError: the model reads no tokens, or has no such option.
        MtlError: transformers is missing, there is no such model, or the weights cannot be read or
            are of another model.
    """

    input_kind = "tokens"
    first_weights = ("weights",)

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        model: str = "bert",
        weights: str = "none",
        config: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        source = Source.of(model)
        configuration = source.configuration(config or {})
        words = configuration.get_text_config()
        if not hasattr(words, "vocab_size"):
            raise _no_tokens(model, f"{configuration.model_type} has no vocabulary")
        kind = _kind(configuration)
        # A layer for the first token, of which the mean of all makes no use.
        pooled = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
        extra = {"add_pooling_layer": False} if pooled else {}
        self._facts = {"model": model}
        licence = source.licence()
        if licence is not None and weights in ("none", "pretrained"):
            self._facts["licence"] = f"{licence} (the model's card)"
        # On the meta device there is nothing to load into.
        if weights == "none" or torch.empty(0).is_meta:
            self.encoder = kind(configuration, **extra)
        else:
            file = source.weights(weights)
            self.encoder, unused = with_weights(kind, configuration, file, **extra)
            self._facts |= weight_facts(file, unused)
        if gradient_checkpointing:
            compute_again(self.encoder, model)
        self.words = int(words.vocab_size)
        self.longest: int | None = getattr(words, "max_position_embeddings", None)
        # Hidden states have a stride of one token; the mean stands beside them.
        self._of_tokens = any(task.layout == "sequence" for task in tasks)
        size = int(words.hidden_size)
        self.out_channels = (size, size) if self._of_tokens else (size,)
        self.strides = (1, 0) if self._of_tokens else (1,)
        self.main_map = 0
        self._try(model)

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> Features:
        """Compute the mean (B, C) of the hidden states of tokens, and these (B, C, L) if needed.

        Args:
            inputs: "tokens", ids (B, L), and "mask" (B, L), true where there is a token.
            tasks: all of them read the same.

        Raises:
            UsageError: the texts are longer than the model can read, or of another vocabulary.
        """
        self._check(inputs["tokens"])
        hidden = self._hidden(inputs["tokens"], inputs["mask"])
        if not self._of_tokens:
            mean = _mean(hidden, inputs["mask"])
            return Features(shared=(mean,), cut=(mean,))
        return Features(
            shared=(hidden.transpose(1, 2), _mean(hidden, inputs["mask"])), cut=(hidden,)
        )

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer that learns."""
        layers = [[*module.parameters(recurse=False)] for module in self.encoder.modules()]
        learning = [layer for layer in layers if any(p.requires_grad for p in layer)]
        return (learning or [layer for layer in layers if layer])[-1]

    def layer_groups(self) -> Sequence[Sequence[Parameter]]:
        """Return the embeddings, and each block of the encoder, from the input on."""
        return layers_of(self.encoder)

    def facts(self) -> Mapping[str, str]:
        """Return the model, its weights with their hash, and their licence."""
        return self._facts

    def _hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(
            input_ids=tokens, attention_mask=mask.long(), return_dict=True
        ).last_hidden_state
        return hidden

    def _check(self, tokens: Tensor) -> None:
        length = tokens.shape[1]
        if self.longest is not None and length > self.longest:
            raise UsageError(
                f"data.length: the texts have {length} tokens, and {type(self.encoder).__name__} "
                f"reads {self.longest}; set it to that"
            )
        largest = 0 if tokens.is_meta or is_exporting() else int(tokens.max())
        if largest >= self.words:
            raise UsageError(
                f"data.tokenizer: the texts have token {largest}, and "
                f"{type(self.encoder).__name__} knows {self.words}; set data.tokenizer to that of "
                "the model"
            )

    def _try(self, model: str) -> None:
        """Let it read a few tokens, and keep from learning what their mean does not depend on.

        Raises:
            UsageError: It cannot.
        """
        tokens = torch.zeros(1, 4, dtype=torch.int64)
        self.eval()
        try:
            # Without a mask, of which the library would ask for values on the meta device too.
            freeze_unreached(
                self.encoder,
                lambda: [self.encoder(input_ids=tokens, return_dict=True).last_hidden_state],
            )
        except Exception as error:  # a model of something else asks for what texts have not
            raise _no_tokens(model, describe(error)) from error
        self.train()


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(hidden.dtype)[..., None]
    # A text without any token has the mean zero.
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def _no_tokens(model: str, reason: str) -> UsageError:
    return UsageError(f"{_MODEL}: {model} cannot read tokens ({reason}); choose a model of texts")


def _kind(configuration: Any) -> Any:
    """Return the class of the encoder of a configuration.

    Raises:
        UsageError: The library has none.
        MtlError: It needs something that is missing here.
    """
    try:
        for name in ("MODEL_FOR_TEXT_ENCODING_MAPPING", "MODEL_MAPPING"):
            known = mapping(name)
            if type(configuration) in known:
                return known[type(configuration)]
    except Exception as error:  # a model may need libraries of its own
        raise MtlError(
            f"{_MODEL}: {configuration.model_type} cannot be imported ({describe(error)})"
        ) from error
    raise UsageError(
        f"{_MODEL}: transformers has no encoder of the type {configuration.model_type}; choose a "
        "model of texts, such as bert"
    )

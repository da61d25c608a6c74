"""Copies of modules that share their weights, in which some parts are exchanged."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from ..errors import MMSpecError

Twin = TypeVar("Twin", bound=nn.Module)


def with_layers(
    model: PreTrainedModel, decoder: nn.Module, layers: list[nn.Module], kinds: list[int]
) -> PreTrainedModel:
    """Return a model whose decoder has other layers. The modules on the way to the decoder are copies, all others are
    shared."""
    (path,) = (name for name, module in model.named_modules() if module is decoder)
    names = path.split(".") if path else []
    outer = twin(model)
    inner: nn.Module = outer
    for name in names:
        child = twin(inner.get_submodule(name))
        inner._modules[name], inner = child, child
    text = model.config.get_text_config(decoder=True)
    shorter = copy.deepcopy(text)
    if getattr(shorter, "layer_types", None):
        shorter.layer_types = [shorter.layer_types[kind] for kind in kinds]
    shorter.num_hidden_layers = len(layers)
    if text is model.config:
        outer.config = shorter
    else:
        outer.config = copy.copy(model.config)
        for name, value in vars(model.config).items():
            if value is text:
                setattr(outer.config, name, shorter)
    decoder_copy: Any = inner
    decoder_copy.config = shorter
    decoder_copy.layers = nn.ModuleList(layers)
    return outer


def twin(module: Twin) -> Twin:
    """Return a copy of a module that shares its weights and its members, which can be exchanged in it."""
    if hasattr(module, "_hf_hook"):
        raise MMSpecError(
            f"{type(module).__name__} was spread over devices by accelerate, which ties its layers together: load it "
            "on one device to use some of its layers"
        )
    other = copy.copy(module)
    for registry in ("_parameters", "_buffers", "_modules"):
        setattr(other, registry, dict(getattr(module, registry)))
    return other

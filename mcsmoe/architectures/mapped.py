"""A stock model in memory as its merged class, without merging anything."""

from typing import Any

import torch

from mcsmoe.architectures.configuration import configuration
from mcsmoe.architectures.experts import expert_in_memory
from mcsmoe.architectures.registry import family_of


def mapped_model(model: Any) -> Any:
    """The merged class with K = E and identity maps: equal logits, its own copy of every weight.

    Expects a model of a stock family; keeps dtype, device, mode and generation settings.
    """
    import transformers

    family = family_of(model.config)
    values = family.merged_config(model.config, {})
    config = configuration(values)
    state = dict(model.state_dict())
    for layer in family.layers(model.config):
        experts = [expert_in_memory(model, layer, e) for e in range(layer.experts)]
        for name, place in layer.in_memory.items():
            state[family.merged_tensor(layer, name)] = torch.stack([expert[name] for expert in experts]).detach()
            for e in range(layer.experts):
                state.pop(place.name(e), None)  # gate and up may share one tensor
        state[family.merged_map(layer)] = torch.arange(layer.experts, device=model.device)
    mapped = getattr(transformers, family.auto_class).from_config(config, dtype=model.dtype)
    mapped.to(model.device).load_state_dict(state)
    mapped.generation_config = model.generation_config
    return mapped.train(model.training)

"""Where experts and routers of a model lie, and what its merged form is called: all that is known of model families.

    from mcsmoe.families import family_of

    family = family_of(config)  # of a stock or merged model: an object of transformers, or the dict of a config.json
    for layer in family.layers(config):
        print(layer.name, layer.experts, layer.places)  # "decoder.0", 8, where each expert tensor lies on disk

A family is a subclass of `Family`: most are `Fused`; DBRX, Llama 4 and Switch differ. Everyone else sees `MoELayer`,
`Expert`, `Role` and `Routing`, which are data. `experts` reads and computes single experts.
"""

from mcsmoe.families.configs import configuration, language_config, merged_layers
from mcsmoe.families.family import FAMILIES, Family, excluded_layers, family_of, register, sparse_layers
from mcsmoe.families.layer import (
    Activation,
    Expert,
    GroupLimit,
    Layout,
    MoELayer,
    Place,
    Role,
    Routing,
    TensorSource,
)
from mcsmoe.families.skeletons import empty_model, skeleton

__all__ = [
    "FAMILIES",
    "Activation",
    "Expert",
    "Family",
    "GroupLimit",
    "Layout",
    "MoELayer",
    "Place",
    "Role",
    "Routing",
    "TensorSource",
    "configuration",
    "empty_model",
    "excluded_layers",
    "family_of",
    "language_config",
    "merged_layers",
    "register",
    "skeleton",
    "sparse_layers",
]

"""Model families: where a model keeps its experts and routers, and what its merged form is called.

    from mcsmoe.families import family_of

    family = family_of(config)  # stock or merged; a transformers object or the dict of a config.json
    for layer in family.layers(config):
        print(layer.name, layer.experts, layer.places)  # "decoder.0", 8, where each expert tensor lies on disk

A family is an instance of a `Family` subclass. Most are `Fused`; DBRX, Llama 4 and Switch have classes of their own.
The rest of the project sees plain data only: `MoELayer`, `Expert`, `Role` and `Routing`. The module `experts` reads
single experts and computes their outputs.
"""

from mcsmoe.families.configs import configuration, language_config, merged_layers, positions
from mcsmoe.families.contents import Contents, contents, sort_unexpected
from mcsmoe.families.family import FAMILIES, Family, auto_class, excluded_layers, family_of, register, sparse_layers
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
    "Contents",
    "Expert",
    "Family",
    "GroupLimit",
    "Layout",
    "MoELayer",
    "Place",
    "Role",
    "Routing",
    "TensorSource",
    "auto_class",
    "configuration",
    "contents",
    "empty_model",
    "excluded_layers",
    "family_of",
    "language_config",
    "merged_layers",
    "positions",
    "register",
    "skeleton",
    "sort_unexpected",
    "sparse_layers",
]

"""Physical removal of pruned rows: smaller tensors, and a configuration that says so."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcsmoe.compression.merged_model import MergedModel, factorised_weights


@torch.no_grad()
def remove_rows(model: MergedModel, alive: Mapping[str, Tensor]) -> None:
    """Keep only the rows of S that are True in alive["layer.weight"] [n], and update the config.

    The function of the model stays what it was, if the rows removed are zero. The `rows` parameters are
    replaced: an optimiser made before holds the old ones.
    """
    for name, module in factorised_weights(model).items():
        mask = torch.zeros(module.u.shape[:2], dtype=torch.bool, device=module.rows.device)  # [K, out]
        mask[module.row_expert(), module.row_index] = alive[name]
        module.keep_rows(mask)
    model.update_config()

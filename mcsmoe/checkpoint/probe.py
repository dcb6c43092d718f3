"""A batch that needs no data, for checking that two models compute the same."""

import torch
from torch import Tensor

BATCH, SOURCE, TARGET = 4, 16, 8


def probe_batch(vocab_size: int, causal: bool) -> dict[str, Tensor]:
    """Seeded random token ids with some padding; a sequence-to-sequence model gets ids for its decoder, too."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(SOURCE // 2, SOURCE + 1, (BATCH, 1), generator=generator)
    batch = {
        "input_ids": torch.randint(vocab_size, (BATCH, SOURCE), generator=generator),
        "attention_mask": (torch.arange(SOURCE) < lengths).long(),
    }
    target = torch.randint(vocab_size, (BATCH, TARGET), generator=generator)
    return batch if causal else batch | {"decoder_input_ids": target}

"""A batch that needs no data, for checking that two models compute the same."""

import torch
from torch import Tensor

BATCH, SOURCE, TARGET = 4, 16, 8


def probe_batch(vocab_size: int) -> dict[str, Tensor]:
    """Seeded random token ids with some padding, for a sequence-to-sequence model."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(SOURCE // 2, SOURCE + 1, (BATCH, 1), generator=generator)
    return {
        "input_ids": torch.randint(vocab_size, (BATCH, SOURCE), generator=generator),
        "attention_mask": (torch.arange(SOURCE) < lengths).long(),
        "decoder_input_ids": torch.randint(vocab_size, (BATCH, TARGET), generator=generator),
    }

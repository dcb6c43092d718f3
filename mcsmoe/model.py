"""The model under study, opened once: what its files say, and its weights for as long as somebody wants them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.families import family_of
from mcsmoe.tasks.batches import Batch, in_order
from mcsmoe.tasks.task import Encoded


class Model:
    """A checkpoint of a supported family, stock or merged; `memory_limit` bytes is what work on it may take.

    `config` is the object of transformers, `checkpoint` reads tensors one by one, `layers` are the sparse layers in
    the order of the forward pass. Opening reads headers only.
    Raises `CheckpointError` for a directory that is missing or damaged, and for another architecture.
    """

    def __init__(self, directory: Path, memory_limit: int | None = None) -> None:
        self.directory, self.memory_limit = Path(directory), memory_limit
        self.config = load_config(self.directory)
        self.checkpoint = Checkpoint(self.directory)
        self.family = family_of(self.config)
        self.layers = self.family.layers(self.config)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that lies with the weights. Raises `CheckpointError` where there is none."""
        return load_tokenizer(self.directory)

    def batches(self, rows: Sequence[Encoded], batch_size: int) -> list[Batch]:
        """`rows` in their order, padded for this model: `input_ids`, `attention_mask` [B, S] and `labels` [B, T]."""
        return list(in_order(rows, self.tokenizer.pad_token_id, batch_size, causal=self.family.causal))

    @contextmanager
    def loaded(self, *, streamed: bool = False, device: torch.device | str = "cpu") -> Iterator[Any]:
        """The transformers model on `device`, in eval mode; `streamed`: its blocks have no memory until they run.

        At the end its weights are gone, whoever still holds it.
        Raises `CheckpointError` as `load_model` does.
        """
        model = load_streamed(self.directory, device) if streamed else load_model(self.directory).to(device)
        try:
            yield model
        finally:
            model.to("meta")

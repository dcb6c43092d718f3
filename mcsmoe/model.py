"""The model under study, opened once: its configuration, its tensors on disk, and its loaded weights on request."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.content import sha256, tensor_hash
from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.families import family_of, merged_layers
from mcsmoe.fields import shown_size
from mcsmoe.tasks.batches import Batch, by_length
from mcsmoe.tasks.task import Encoded

INCIDENTAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map"}
"""Fields of config.json that change when a model is saved anew."""
VOCABULARY = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")
"""Files of a tokenizer that decide which tokens a text becomes."""


class Model:
    """A checkpoint of a supported family, stock or merged; work on it may use `memory_limit` bytes (None: no limit).

    `config` is the transformers object, `checkpoint` reads single tensors, and `layers` are the sparse layers in
    order of the forward pass. Opening reads headers only. The model runs on `device`; `name` is what people call it,
    by default its directory. `trust_remote_code` allows the tokenizer to run the code beside it.
    by default its directory. Without `keep_mtp`, `checkpoint` has no layers for multi-token prediction.
    Raises `CheckpointError` for a directory that is missing or damaged, and for an unsupported architecture.
    """

    def __init__(
        self,
        directory: Path,
        memory_limit: int | None = None,
        *,
        device: torch.device | str = "cpu",
        name: str | None = None,
        trust_remote_code: bool = False,
        keep_mtp: bool = True,
    ) -> None:
        self.directory, self.memory_limit, self.device = Path(directory), memory_limit, device
        self.name, self.trust_remote_code = name or str(directory), trust_remote_code
        self.config = load_config(self.directory)
        self.checkpoint = Published(Checkpoint(self.directory), keep_mtp=keep_mtp)
        self.family = family_of(self.config)
        self.layers = self.family.layers(self.config)

    def __repr__(self) -> str:
        counts = sorted(set(self.experts.values())) or [0]
        experts = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        what = f"{len(self.layers)} layers of {experts} experts, {shown_size(self.checkpoint.size_bytes)}"
        return f"Model({self.name!r}: {self.config.model_type}, {what})"

    @property
    def experts(self) -> dict[str, int]:
        """How many experts each sparse layer holds; those of a merged layer are the merged ones."""
        merged = merged_layers(self.config) or {}
        return {layer.name: merged.get(layer.name, {}).get("experts", layer.experts) for layer in self.layers}

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint. Raises `CheckpointError` if there is none."""
        return load_tokenizer(self.directory, trust_remote_code=self.trust_remote_code)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes by which statistics know their model: of its routers, its configuration and its tokenizer."""
        held = set(self.checkpoint.names())
        routers = [layer.router_weight for layer in self.layers if layer.router_weight in held]
        config = {name: value for name, value in self.checkpoint.config.items() if name not in INCIDENTAL}
        vocabulary = [path.read_bytes() for name in VOCABULARY if (path := self.directory / name).is_file()]
        return {
            "router": sha256(tensor_hash({name: self.checkpoint.tensor(name)}).encode() for name in routers),
            "configuration": sha256([json.dumps(config, sort_keys=True).encode()]),
            "tokenizer": sha256(vocabulary),
        }

    def batches(self, rows: Sequence[Encoded], batch_size: int) -> list[Batch]:
        """Batches of rows of similar length, longest first: `input_ids`, `attention_mask` [B, S], `labels` [B, T]."""
        return list(by_length(rows, self.tokenizer.pad_token_id, batch_size, causal=self.family.causal))

    @contextmanager
    def loaded(self, *, streamed: bool = False, device: torch.device | str | None = None) -> Iterator[Any]:
        """Context manager that loads the transformers model in eval mode, and frees its weights at the end.

        `device` is another one than the model's own.

        The weights are freed even if the model object is still referenced. With `streamed` only one block at a time
        is in memory (see `load_streamed`). Raises `CheckpointError` as `load_model` does.
        """
        place = device or self.device
        model = load_streamed(self.directory, place) if streamed else load_model(self.directory).to(place)
        try:
            yield model
        finally:
            model.to("meta")

"""What a model predicts on held-out rows, for comparing it with another: losses, next tokens, hidden states, text."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.calibration.memory import forwards_at_once, must_stream_scoring
from mcsmoe.checkpoint.lockstep import run_forwards
from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.streamed import block_names, device_of
from mcsmoe.model import Model
from mcsmoe.tasks.batches import IGNORED, collate, model_inputs
from mcsmoe.tasks.task import Encoded

CHUNK = 128
"""Positions whose logits are in float32 at a time: with a vocabulary of 150,000, 77 MB."""
STATES_ROWS, STATES_STEP = 8, 64
"""Hidden states are kept of this many rows, at every so-many-th position."""
STATES = "states/"
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 48, 16
"""Prompts that are continued, their length, and how many tokens are written. Each token of a model that is read block
by block takes a reading of the whole model."""


@dataclass(frozen=True)
class Predictions:
    """What a model makes of N rows.

    `losses` [N]: cross-entropy in nats, summed over the tokens of a row, and `tokens` [N]: how many those are.
    `next_tokens` [Σ tokens]: the most likely token at each position, row after row.
    `states` [n, d]: hidden states after each block, by its name, at some positions.
    `texts`: how the model goes on after each of the prompts.
    """

    losses: Tensor
    tokens: Tensor
    next_tokens: Tensor
    states: dict[str, Tensor]
    texts: list[str]

    def keep(self, store: Store, name: str) -> None:
        """Write everything as a note."""
        tensors = {"losses": self.losses, "tokens": self.tokens, "next_tokens": self.next_tokens}
        store.keep(name, tensors | {f"{STATES}{block}": value for block, value in self.states.items()}, self.texts)

    @classmethod
    def load(cls, store: Store, name: str) -> "Predictions":
        """Read what `keep` wrote."""
        tensors, texts = store.load(name)
        states = {key.removeprefix(STATES): value for key, value in tensors.items() if key.startswith(STATES)}
        return cls(tensors["losses"], tensors["tokens"], tensors["next_tokens"], states, texts)


def predictions(model: Model, rows: Sequence[Encoded]) -> Predictions:
    """Run `model` on held-out `rows`, one at a time, and let it continue the beginnings of some.

    A model that does not fit whole into its `memory_limit` is streamed. Raises `MemoryLimitError` if it does not fit
    streamed either, and what loading it raises.
    """
    longest = max(len(row.source) + len(row.target) for row in rows)
    streamed = must_stream_scoring(model.memory_limit, "measure", model.config, 1, longest, generates=False)
    with model.loaded(streamed=streamed) as module, torch.no_grad():
        scored = _scored(model, module, rows, longest)
        return Predictions(*scored, texts=_continued(model, module, prompts(rows, model.family.causal)))


def _scored(
    model: Model, module: nn.Module, rows: Sequence[Encoded], longest: int
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    losses, tokens = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.int64)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    limit = model.memory_limit
    current = threading.local()  # passes of a streamed model run in threads of their own

    def forward(i: int) -> None:
        current.row = i
        batch = collate([rows[i]], model.tokenizer.pad_token_id, causal=model.family.causal)
        inputs = {name: value.to(device_of(module)) for name, value in model_inputs(batch, model.family.causal).items()}
        logits = module(**inputs, use_cache=False).logits[0]  # [T, V]
        labels = batch["labels"][0].to(logits.device)  # [T]
        real = labels != IGNORED
        nats, best = [], []
        for part, wanted in zip(logits[real].split(CHUNK), labels[real].split(CHUNK), strict=True):
            nats.append(F.cross_entropy(part.float(), wanted, reduction="sum").double())
            best.append(part.argmax(-1))
        losses[i], tokens[i], found[i] = sum(nats), int(real.sum()), torch.cat(best).cpu()

    with _states(model, module, lambda: current.row) as states:
        forwards = [partial(forward, i) for i in range(len(rows))]
        run_forwards(module, forwards, "score held-out text", at_once=forwards_at_once(module, limit, 1, longest))
    return losses, tokens, torch.cat(found), {name: torch.cat(parts) for name, parts in states.items()}


@contextmanager
def _states(model: Model, module: nn.Module, row: Callable[[], int]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the hidden states [n, d] after each block, on the CPU, for the first rows."""
    names = block_names(module, model.layers)
    states: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            if row() < STATES_ROWS:
                state = output if isinstance(output, Tensor) else output[0]
                states[name].append(state[0, ::STATES_STEP].cpu())

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(module.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield states


def prompts(rows: Sequence[Encoded], causal: bool) -> list[Encoded]:
    """The beginnings of some rows, of equal length; an encoder-decoder gets their whole sources.

    Rows of one kind of text lie together, so those are taken that are far apart.
    """
    chosen = [rows[i * len(rows) // PROMPTS] for i in range(min(PROMPTS, len(rows)))]
    if not causal:
        return [Encoded(row.source, []) for row in chosen]
    whole = [[*row.source, *row.target] for row in chosen]
    length = max(1, min(PROMPT_TOKENS, *(len(ids) // 2 for ids in whole)))
    return [Encoded(ids[:length], []) for ids in whole]


def _continued(model: Model, module: Any, asked: Sequence[Encoded]) -> list[str]:
    """Greedy continuations of all prompts together; each token is one pass over the whole text so far.

    A cache of keys and values would save arithmetic, but it cannot be kept between the blocks of a streamed model.
    """
    device, pad = device_of(module), model.tokenizer.pad_token_id
    causal = model.family.causal
    fixed: dict[str, Tensor] = {}
    if causal:
        ids = torch.tensor([row.source for row in asked], device=device)  # [prompts, length]
        length = ids.shape[1]
    else:
        batch = collate([Encoded(row.source, [pad]) for row in asked], pad, causal=False)
        fixed = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        start = module.config.decoder_start_token_id
        ids, length = torch.full((len(asked), 1), start, device=device), 1
    chosen: list[Tensor] = []

    def step() -> None:
        inputs = {"input_ids": ids} if causal else fixed | {"decoder_input_ids": ids}
        chosen.append(module(**inputs, use_cache=False).logits[:, -1].argmax(-1))

    for _ in range(NEW_TOKENS):
        run_forwards(module, [step], "continue prompts", show=False)
        ids = torch.cat([ids, chosen.pop()[:, None]], 1)
    texts: list[str] = model.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=False)
    return texts


def equal_share(one: Predictions, other: Predictions) -> float:
    """Share of positions at which both find the same token most likely."""
    return float((one.next_tokens == other.next_tokens).double().mean())


def relative_change(full: Predictions, merged: Predictions) -> dict[str, float]:
    """‖h' − h‖ / ‖h‖ of the hidden states after each block, over all kept positions, by the block's name."""
    return {
        name: float((merged.states[name].double() - h.double()).norm() / h.double().norm().clamp(min=1e-30))
        for name, h in full.states.items()
    }

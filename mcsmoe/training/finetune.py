"""Fine-tuning on the task, of the full model and of the dense baseline."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.checkpoint.output import check_room_for
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.resume import source_code
from mcsmoe.evaluation.quality import likelihood
from mcsmoe.families import Family, MoELayer, family_of
from mcsmoe.params import Finetune, Params
from mcsmoe.tasks.batches import IGNORED, Batch, model_inputs
from mcsmoe.tasks.reading import hold_out
from mcsmoe.tasks.task import TASKS, Encoded, Example, Task
from mcsmoe.training.loop import Fit, Losses, make_accelerator
from mcsmoe.training.state import rows_hash
from mcsmoe.training.together import counted_tokens, mean, summed
from mcsmoe.training.writing import train as train_and_write


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of −ln p over the label tokens of all processes; 0 without any. logits: [B, T, V]; labels: [B, T]."""
    flat = logits.flatten(0, 1).float()
    return mean(
        F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum"), (labels != IGNORED).sum()
    )


def z_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of (ln Σ_e exp h_e)² over real tokens (ST-MoE, arXiv 2202.08906, eq. 5); 0 without real tokens.

    logits: [T, E]; mask: [T], non-zero at real tokens. Computed in float32, over all processes. Returns a scalar.
    """
    real = mask.bool().float()
    partition = torch.logsumexp(logits.float(), dim=-1)  # [T]
    return mean((partition.square() * real).sum(), real.sum())


def balance_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """E·Σ_e f_e·P_e (Switch Transformers, arXiv 2101.03961, eq. 4); 1 if perfectly even, 0 without real tokens.

    f_e is the share of real tokens whose first choice is e (no gradient), P_e the mean probability of e over them.
    logits: [T, E]; mask: [T], non-zero at real tokens. Computed in float32, over all processes. Returns a scalar.
    """
    experts = logits.shape[-1]
    real = mask.bool().float()
    probability = logits.float().softmax(dim=-1)  # [T, E]
    chosen = F.one_hot(logits.argmax(dim=-1), experts).to(probability.dtype)  # [T, E]
    choices, probabilities = summed(torch.stack([real @ chosen, real @ probability]))  # [E] each
    count = choices.sum().clamp(min=1)
    return experts * (choices / count * (probabilities / count)).sum()


class FullLoss:
    """Cross-entropy per label token, plus weighted z-loss and balance loss, each averaged over the sparse layers."""

    def __init__(self, family: Family, layers: Sequence[MoELayer], settings: Finetune) -> None:
        self._family, self._layers, self._settings = family, layers, settings
        self._logits: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Record the router logits of each forward pass of `model` while the context is open."""

        def record(layer: MoELayer) -> Any:
            block = model.get_submodule(layer.path)

            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._logits[layer.name] = self._family.routing(block, output).logits

            return hook

        handles = [
            model.get_submodule(layer.router_path).register_forward_hook(record(layer)) for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the terms `loss`, `task` and, for a sparse model, `router_z` and `balance`; see `Fit.loss`."""
        causal = self._family.causal
        task = cross_entropy(model(**model_inputs(batch, causal)).logits, batch["labels"])
        masks = {stack: mask.flatten() for stack, mask in counted_tokens(batch, causal).items()}
        pairs = [(self._logits[layer.name], masks[layer.stack]) for layer in self._layers]
        if not pairs:  # a dense model
            return {"loss": task, "task": task}
        router_z = torch.stack([z_loss(*pair) for pair in pairs]).mean()
        balance = torch.stack([balance_loss(*pair) for pair in pairs]).mean()
        loss = task + self._settings.router_z_loss * router_z + self._settings.balance_loss * balance
        return {"loss": loss, "task": task, "router_z": router_z, "balance": balance}


def selection_check(
    task: Task, rows: Sequence[Encoded], pad: int, batch_size: int
) -> Callable[[Any], tuple[float, ...]]:
    """Return a function of the model whose value is largest for the best checkpoint.

    The value is (share of exact answers, −cross-entropy) for a task with answers, (−cross-entropy,) for running text.
    """

    def check(model: Any) -> tuple[float, ...]:
        found = likelihood(model, rows, pad, batch_size)
        answers = task.generates or task.chooses
        return (found.sequence_accuracy, -found.cross_entropy) if answers else (-found.cross_entropy,)

    return check


def split_train(params: Params) -> tuple[list[Example], list[Example]]:
    """Return (train, selection): the examples to train on, and those held out to choose the best checkpoint."""
    return hold_out(TASKS[params.task.name].examples(params.task, "train"), params.task.selection, params.seed)


def finetune(
    params: Params,
    model: Any,
    tokenizer: Any,
    split: tuple[list[Example], list[Example]],
    output: Path,
    curve: Path,
    source: Path | None = None,
    beside: Published | None = None,
) -> None:
    """Train `model` by `params.finetune`; write the weights that did best on the selection split to `output`.

    The training curve goes to `curve`. `source` is the checkpoint that training starts from, `beside` its tensors: see
    `save_model`.
    Raises `DiskFullError` before training if `output` has no room, `CheckpointError` if the written checkpoint differs
    from the model in memory.
    """
    task, settings = TASKS[params.task.name], params.finetune
    train, selection = split
    check_room_for(model, output)
    family = family_of(model.config)
    held_out = task.encode(tokenizer, selection, params.task, params.seed)
    loss = FullLoss(family, family.layers(model.config), settings)
    fit = Fit(
        model=model,
        settings=settings,
        epoch=lambda number: task.encode(tokenizer, train, params.task, params.seed + number),
        loss=loss,
        pad=tokenizer.pad_token_id,
        causal=family.causal,
        seed=params.seed,
        accelerator=make_accelerator(),
        fsdp=params.launch.fsdp,
        checks=settings.evaluations,
        check=selection_check(task, held_out, tokenizer.pad_token_id, settings.batch_size),
    )
    key = {"code": source_code(params.plugins), "selection": rows_hash(held_out), "evaluations": settings.evaluations}
    train_and_write(
        fit,
        output.name,
        tokenizer,
        output,
        curve,
        source,
        beside,
        minutes=params.launch.checkpoint_minutes,
        key=key,
        during=loss.watching(model),
    )

"""Measurements for benchmarks/hours.py: FLOPs of modules, words of examples, how busy a training step keeps a CPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from benchmarks.speed_models import RANK, SWITCH
from mcsmoe.checkpoint.streamed import Footprint
from mcsmoe.evaluation.cost import flops_per_token
from mcsmoe.families import configuration, family_of
from mcsmoe.params import Params
from mcsmoe.tasks.batches import collate
from mcsmoe.tasks.task import TASKS, Encoded
from mcsmoe.training.optimiser import Optimiser

FOLDERS = {"wikiqa": "wiki_qa", "hotpotqa": "hotpot_qa"}
KEPT = 8


def configurations(params: Params) -> dict[str, Any]:
    """Configurations by name: full; merged as in `params`; compressed, with S still whole, as in training; dense."""
    full = transformers.AutoConfig.for_model(**SWITCH | {"expert_capacity": 2**20})  # no token over capacity
    family = family_of(full)
    untouched = {f"encoder.{i}" for i in params.merge.exclude.encoder}
    kept = {layer.name: KEPT for layer in family.layers(full) if layer.name not in untouched}
    merged, compressed = (configuration(family.merged_config(full, kept)) for _ in range(2))
    for name, experts in kept.items():
        rows = {"wi": experts * full.d_ff, "wo": experts * full.d_model}
        compressed.moe_layers[name] = {"experts": experts, "rank": RANK, "structure": "row", "kept": rows}
    dense = transformers.AutoConfig.for_model(**family.dense_config(full))
    return {"full": full, "merged": merged, "compressed": compressed, "dense": dense}


def weight_bytes(params: Params) -> dict[str, int]:
    """Bytes of the weights of each configuration in float32."""
    return {name: Footprint.of(config).whole for name, config in configurations(params).items()}


def build(config: Any) -> Any:
    """Build a model without setting weights: FLOPs do not depend on them, and untouched memory costs nothing."""
    with no_init_weights():
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.tie_weights()
    return model.eval()


def forward_flops(models: dict[str, Any], source: int, target: int) -> dict[str, float]:
    """FLOPs, by model, of the forward pass of one example with `source` and `target` tokens."""
    row = Encoded([2] * source, [2] * target)
    return {name: flops_per_token(model, [row], 0) * (source + target) for name, model in models.items()}


def words(task: str, data: Path) -> tuple[float, float]:
    """Mean number of words, split at white space, of source and target over the training examples."""
    settings = Params.load(Path(f"presets/switch-base-32-{task}.yaml")).task
    local = settings.model_copy(update={"data": str(data / FOLDERS.get(task, task)), "subset": None})
    examples = TASKS[task].examples(local, "train")
    counts = [(len(example.source.split()), len(example.target.split())) for example in examples]
    source, target = (sum(each) / len(counts) for each in zip(*counts))
    return round(source, 1), round(target, 1)


def busy(params: Params, rounds: int = 7) -> list[float]:
    """FLOPs per CPU second of a training step, relative to those of matrix products, on one thread, by round.

    The model has four blocks and 8 experts per layer, with the full model's widths; a batch has 16 × (128 + 8) tokens.
    A step is a forward and a backward pass, clipping and AdamW.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = transformers.AutoConfig.for_model(**SWITCH | small | {"num_experts": 8})
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).train()
    optimiser = Optimiser(model, params.finetune, steps=1)
    ids = torch.randint(2, 1000, (16, 136)).tolist()
    batch = collate([Encoded(row[:128], row[128:]) for row in ids], 0, causal=False)
    x, w = torch.randn(2048, 768), torch.randn(768, 3072)

    def step() -> None:
        model(**batch).loss.backward()
        optimiser.step(1)

    def multiply() -> None:
        for _ in range(20):
            torch.mm(x, w)

    flops = {work: counted(work) for work in (step, multiply)}  # also warms up
    shares = []
    for _ in range(rounds):
        rates = [flops[work] / seconds(work) for work in (step, multiply)]
        shares.append(round(rates[0] / rates[1], 4))
    return shares


def counted(work: Callable[[], None]) -> int:
    """FLOPs of `work`, counted apart from `seconds` because counting takes time."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of `work`."""
    before = time.process_time()
    work()
    return time.process_time() - before

"""What benchmarks/hours.py rests on: FLOPs of modules, words of examples, how busy a training step keeps a CPU."""

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
from mcsmoe.training.loop import make_optimizer

FOLDERS = {"wikiqa": "wiki_qa", "hotpotqa": "hotpot_qa"}
KEPT = 8


def configurations(params: Params) -> dict[str, Any]:
    """Full, merged as `params` say, merged and factorised with S whole (as it trains), and dense."""
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
    """Bytes of the weights of each, float32."""
    return {name: Footprint.of(config).whole for name, config in configurations(params).items()}


def build(config: Any) -> Any:
    """The modules of a configuration; no value is set, because FLOPs depend on none: memory stays untouched."""
    with no_init_weights():
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.tie_weights()
    return model.eval()


def forward_flops(models: dict[str, Any], source: int, target: int) -> dict[str, float]:
    """FLOPs of the forward pass of one example of so many tokens, by model."""
    row = Encoded([2] * source, [2] * target)
    return {name: flops_per_token(model, [row], 0) * (source + target) for name, model in models.items()}


def words(task: str, data: Path) -> tuple[float, float]:
    """Mean whitespace words of a source and a target of the training examples."""
    settings = Params.load(Path(f"presets/switch-base-32-{task}.yaml")).task
    local = settings.model_copy(update={"data": str(data / FOLDERS.get(task, task)), "subset": None})
    examples = TASKS[task].examples(local, "train")
    counts = [(len(example.source.split()), len(example.target.split())) for example in examples]
    source, target = (sum(each) / len(counts) for each in zip(*counts))
    return round(source, 1), round(target, 1)


def busy(params: Params, rounds: int = 7) -> list[float]:
    """FLOPs per CPU second of a training step over those of matrix products, on one thread, round by round.

    Four blocks and 8 experts of the full model's widths, 16 × (128 + 8) tokens; forward and backward pass, clipping
    and AdamW.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = transformers.AutoConfig.for_model(**SWITCH | small | {"num_experts": 8})
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).train()
    optimizer = make_optimizer(model, params.finetune)
    ids = torch.randint(2, 1000, (16, 136)).tolist()
    batch = collate([Encoded(row[:128], row[128:]) for row in ids], 0, causal=False)
    x, w = torch.randn(2048, 768), torch.randn(768, 3072)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), params.finetune.max_grad_norm)
        optimizer.step()

    def multiply() -> None:
        for _ in range(20):
            torch.mm(x, w)

    flops = {work: counted(work) for work in (step, multiply)}  # this warms up as well
    shares = []
    for _ in range(rounds):
        rates = [flops[work] / seconds(work) for work in (step, multiply)]
        shares.append(round(rates[0] / rates[1], 4))
    return shares


def counted(work: Callable[[], None]) -> int:
    """FLOPs of `work`; counting takes time of its own."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds(work: Callable[[], None]) -> float:
    """Seconds of the CPU that `work` takes."""
    before = time.process_time()
    work()
    return time.process_time() - before

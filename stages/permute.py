"""Align the hidden neurons of each layer's experts to one of them; the model computes the same."""

from functools import cache
from pathlib import Path
from typing import Any

from stages.common import FIGURES, run, start

SOURCE = Path("artifacts/finetune")
OUTPUT = Path("artifacts/permute")


def main() -> None:
    """Align artifacts/finetune; write artifacts/permute and how far matching improved.

    Interrupted, it goes on with the layer where it stopped.
    """
    params = start()
    from torch import Tensor

    from mcsmoe.alignment.activations import LazyTokens
    from mcsmoe.alignment.permute import (
        LAYER_REFERENCES,
        KeptMatches,
        LayerMatch,
        activation_matches,
        largest_change,
        weight_matches,
        write_permuted,
    )
    from mcsmoe.calibration.memory import must_stream
    from mcsmoe.calibration.sample import draw_calibration
    from mcsmoe.calibration.watch import count
    from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.checkpoint.resume import identity, resumable_directory, source_code
    from mcsmoe.checkpoint.streamed import load_streamed
    from mcsmoe.checkpoint.verify import verify_checkpoint
    from mcsmoe.families import MoELayer, family_of
    from mcsmoe.tasks.batches import model_inputs

    source = Checkpoint(SOURCE)
    family = family_of(source.config)
    layers = family.layers(source.config)
    tokenizer = load_tokenizer(SOURCE)
    sample = draw_calibration(params.task, tokenizer, params.calibration.samples, params.seed)
    batches = sample.batches(tokenizer.pad_token_id, params.calibration.batch_size, causal=family.causal)

    limit = params.memory_limit
    looks = params.permute.matching == "activation"
    streamed = must_stream(limit, "permute", load_config(SOURCE), params.task, params.calibration, tokens=looks)

    # What needs no forward pass loads no model.
    @cache
    def model() -> Any:
        return load_streamed(SOURCE) if streamed else load_model(SOURCE)

    @cache
    def counts() -> dict[str, Tensor]:
        return count(model(), family, layers, batches)

    tokens = LazyTokens(family, lambda: (model(), batches))

    def match(layer: MoELayer) -> LayerMatch:
        reference = LAYER_REFERENCES[params.permute.reference](layer, counts)
        if params.permute.matching == "weight":
            return LayerMatch(reference, weight_matches(source, layer, reference))
        return LayerMatch(reference, activation_matches(source, layer, reference, tokens(layer)))

    key = {
        "source": identity(SOURCE),
        "sample": sample.fingerprint,
        "params": params.model_dump(mode="json", include={"seed", "task", "calibration", "permute"}),
        "code": source_code(),
    }
    probe = model_inputs(batches[0], family.causal)
    with resumable_directory(OUTPUT, key) as staging:
        matches = KeptMatches(staging.store, match)
        written = write_permuted(source, layers, lambda layer: matches(layer).orders, *staging)
        report = {layer.name: matches(layer).summary for layer in layers}
        tokens.forget()
        model.cache_clear()
        verify_checkpoint(staging.output, written, probe, None, limit)
        change = largest_change(SOURCE, staging.output, probe, limit)
    write_json(FIGURES / "permute.json", {"largest_logit_change": round(change, 6), "layers": report})
    for name, row in report.items():
        print(f"{name}: matching {row['before']:.4f} → {row['after']:.4f} with expert {row['reference']}")


if __name__ == "__main__":
    run(main)

import copy

import pytest
import torch

from mcsmoe.compression.factorise import sparse_parts
from mcsmoe.compression.pruner import Pruner
from mcsmoe.compression.size import factor_bytes, kept_units, unit_bytes
from tests.compression.settings import compress
from tests.compression.tiny import D_FF, D_MODEL, EXPERTS, WEIGHTS, adamw, dead, factorised, kept, logits, sgd, train
from tests.models import KEPT

ROWS = EXPERTS * (D_FF + D_MODEL)


def gradients(model):
    found = [part.values.grad for part in sparse_parts(model).values()]
    assert all(gradient is not None for gradient in found)
    return found


@pytest.mark.parametrize("optimiser", [adamw, sgd])
def test_exact_counts_and_no_unit_comes_back(optimiser):
    model = factorised()
    pruner = Pruner(model, compress(), 10)
    assert kept(model) == ROWS
    seen = torch.zeros(ROWS, dtype=torch.bool)

    def check(step):
        nonlocal seen
        gone = dead(model)
        left = kept_units(ROWS, pruner._schedule.remaining(step))
        assert int((~gone).sum()) == left
        assert pruner.remaining == left / ROWS
        assert gone[seen].all()
        seen = gone

    train(model, pruner, 10, optimiser, check)
    assert pruner.remaining == pytest.approx(0.1, abs=1 / ROWS)


def test_optimiser_cannot_revive_units_after_the_schedule_ended():
    """Momentum gathered before pruning, and weight decay, keep pushing."""
    model = factorised()
    pruner = Pruner(model, compress(initial_warmup=0.5, final_warmup=0.5), 12)
    gone: dict[int, torch.Tensor] = {}

    def check(step):
        zero = dead(model)
        gone.setdefault(step, zero)
        if step > 6:
            assert torch.equal(zero, gone[7])

    train(model, pruner, 12, sgd, check)
    assert not gone[6].any()
    assert gone[7].any()


def test_pruned_units_do_not_count_in_the_gradient_norm():
    model = factorised()
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=1.0), 2)
    train(model, pruner, 1)
    for part in sparse_parts(model).values():
        part.values.grad = torch.ones_like(part.values)
    pruner.before_step()
    largest = torch.cat([gradient.abs().amax(1) for gradient in gradients(model)])
    assert torch.equal(largest == 0, dead(model))


def test_a_pruned_unit_is_not_chosen_again_however_important_it_was():
    model = factorised()
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=0.0, beta=0.0), 10)
    train(model, pruner, 1)
    pruner.after_step(3)
    gone = dead(model)
    for name, part in sparse_parts(model).items():
        part.values.data[~pruner._alive[name]] = 1e6
        part.values.grad = torch.ones_like(part.values)
    pruner.before_step()
    pruner.after_step(6)
    later = dead(model)
    assert later[gone].all()
    assert int((~later).sum()) == kept_units(ROWS, pruner._schedule.remaining(6))


def test_interval_delays_pruning():
    model = factorised()
    pruner = Pruner(model, compress(interval=4, initial_warmup=0.0, final_warmup=0.0), 12)
    shares = []
    train(model, pruner, 12, each=lambda _: shares.append(pruner.remaining))
    assert [i + 1 for i in range(12) if shares[i] < ([1, *shares])[i]] == [4, 8, 12]


def test_a_layer_without_tokens_is_pruned_first():
    model = factorised()
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=1.0, final_ratio=0.3), 1)
    parts = sparse_parts(model)
    for name, part in parts.items():
        part.values.grad = None if name.startswith("decoder.1.") else torch.ones_like(part.values)
    pruner.before_step()
    pruner.after_step(1)
    assert pruner.remaining == pytest.approx(0.3, abs=1 / ROWS)
    assert not any(parts[f"decoder.1.{key}"].values.any() for key in ("wi", "wo"))


@pytest.mark.parametrize("structure", ["row", "column", "element"])
def test_ties_keep_the_first_units(structure):
    model = factorised(compress(structure=structure))
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=1.0, final_ratio=0.25), 1)
    total = kept(model)
    pruner.before_step()  # no gradient at all: every score is 0
    pruner.after_step(1)
    alive = ~dead(model)
    assert alive[: total // 4].all()
    assert not alive[total // 4 :].any()


@pytest.mark.parametrize("ratio", [0.1, 0.0])
@pytest.mark.parametrize(
    "variant",
    [
        {"structure": "row"},
        {"structure": "column"},
        {"structure": "element"},
        {"structure": "none"},
        {"structure": "row", "rank": 0},
        {"structure": "element", "rank": 0, "uncertainty": 0.9},
    ],
    ids=lambda variant: "-".join(map(str, variant.values())),
)
def test_removal_keeps_the_function_and_matches_the_formula(variant, ratio, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    settings = compress(final_ratio=ratio, **variant)
    model = factorised(settings)
    total = kept(model)
    pruner = Pruner(model, settings, 6)
    train(model, pruner, 6)
    before = logits(model)
    pruner.finish(model)
    after = logits(model)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)

    assert kept(model) == kept_units(total, ratio)
    found = formula = was = 0
    for name, mlp in model.sparse_mlps().items():
        for key, shape in (("wi", (KEPT[name], D_FF, D_MODEL)), ("wo", (KEPT[name], D_MODEL, D_FF))):
            linears = getattr(mlp.experts, key)
            assert model.config.moe_layers[name]["kept"][key] == linears.kept
            found += sum(value.nbytes for value in linears.state_dict().values())
            formula += factor_bytes(shape, linears.rank, linears.structure, 4)
            formula += linears.kept * unit_bytes(linears.structure, *shape[1:], 4)
            was += 4 * shape[0] * shape[1] * shape[2]
    assert found == formula < was

    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), after)


def test_without_s_there_is_nothing_to_prune():
    settings = compress(structure="none")
    model = factorised(settings)
    before = copy.deepcopy(model.state_dict())
    pruner = Pruner(model, settings, 3)
    for step in (1, 2, 3):
        pruner.before_step()
        pruner.after_step(step)
        assert pruner.remaining == 0
    pruner.finish(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_finish_prunes_to_the_final_share_when_training_ended_early():
    model = factorised()
    pruner = Pruner(model, compress(), 100)
    train(model, pruner, 3)
    pruner.finish(model)
    assert pruner.remaining == kept_units(ROWS, 0.1) / ROWS
    assert kept(model) == kept_units(ROWS, 0.1)


def test_an_excluded_layer_stays_dense():
    model = factorised(exclude={"encoder.1"})
    pruner = Pruner(model, compress(), 4)
    train(model, pruner, 4)
    pruner.finish(model)
    assert model.config.moe_layers["encoder.1"] == {"experts": 1}
    assert list(sparse_parts(model)) == [name for name in WEIGHTS if not name.startswith("encoder.1.")]


@pytest.mark.parametrize("structure", ["row", "element"])
def test_same_seed_same_units(structure):
    found = []
    for _ in range(2):
        settings = compress(structure=structure, uncertainty=0.9)
        model = factorised(settings)
        pruner = Pruner(model, settings, 5)
        train(model, pruner, 5)
        pruner.finish(model)
        found.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

import copy

import pytest
import torch

from mcsmoe.compression.factorise import factorise_model
from mcsmoe.compression.merged_model import factorised_weights
from mcsmoe.compression.pruner import Pruner
from mcsmoe.compression.size import compressed_parameters, kept_rows
from mcsmoe.errors import ParameterError, UserError
from tests.compression.settings import compress

SETTINGS = compress()
EXPERTS = {"encoder.1": 3, "encoder.3": 2, "decoder.1": 1, "decoder.3": 4}


def _merged():
    from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
    from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration

    torch.manual_seed(0)
    config = MCSMoESwitchConfig(
        vocab_size=32,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_heads=2,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_experts=4,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
        decoder_start_token_id=0,
        moe_layers={n: {"experts": k, "rank": 0, "rows": {"wi": 0, "wo": 0}} for n, k in EXPERTS.items()},
    )
    return MCSMoESwitchForConditionalGeneration(config)


def _factorised(settings=SETTINGS, exclude=()):
    from mcsmoe.modeling.modeling_mcsmoe_switch import FactorisedLinears

    model = _merged()
    factorise_model(model, settings, FactorisedLinears.from_factors, exclude)
    return model


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 32, (2, 8, 10), generator=generator)
    return {"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0]), "labels": ids[1]}


def _logits(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def _adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1)


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-1, momentum=0.9, weight_decay=0.1)


def _train(model, pruner, batch, steps, optimiser=_adamw, each=None):
    model.train()
    optimiser = optimiser(model.parameters())
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        pruner.before_step()
        optimiser.step()
        pruner.after_step(step)
        if each:
            each(step)


def _gradient(module):
    assert module.rows.grad is not None
    return module.rows.grad


def _zero_rows(model):
    rows = [module.rows.detach() for module in factorised_weights(model).values()]
    return torch.cat([(row == 0).all(1) for row in rows])


def test_factorising_keeps_the_function(batch):
    before = _merged()
    after = _factorised()
    torch.testing.assert_close(_logits(after, batch), _logits(before, batch), rtol=1e-5, atol=1e-5)
    assert after.config.moe_layers["encoder.1"] == {"experts": 3, "rank": 2, "rows": {"wi": 72, "wo": 48}}


def test_excluded_layers_are_untouched(batch):
    model, dense = _factorised(exclude={"encoder.1"}), _merged()
    assert model.config.moe_layers["encoder.1"]["rank"] == 0
    assert model.config.moe_layers["decoder.1"]["rank"] == 2
    kept = [mlp.sparse_mlps()["encoder.1"].experts.wi.weight for mlp in (model, dense)]
    assert torch.equal(*kept)
    pruner = Pruner(model, SETTINGS, 4)
    _train(model, pruner, batch, 4)
    pruner.finish()
    assert model.config.moe_layers["encoder.1"]["rank"] == 0


def test_a_rank_that_saves_nothing_is_refused_before_any_work():
    with pytest.raises(ParameterError, match=r"compress\.rank = 9"):
        _factorised(compress(rank=9))


def test_nothing_left_to_compress():
    with pytest.raises(UserError, match="nothing to compress"):
        _factorised(exclude=EXPERTS)


@pytest.mark.parametrize("optimiser", [_adamw, _sgd])
def test_exact_counts_and_no_row_comes_back(batch, optimiser):
    model = _factorised()
    pruner = Pruner(model, SETTINGS, 10)
    total = len(_zero_rows(model))
    assert total == sum(k * (24 + 16) for k in EXPERTS.values())
    seen = torch.zeros(total, dtype=torch.bool)

    def check(step):
        nonlocal seen
        dead = _zero_rows(model)
        left = kept_rows(total, pruner._schedule.remaining(step))
        assert int((~dead).sum()) == left
        assert pruner.remaining == left / total
        assert dead[seen].all()
        seen = dead

    _train(model, pruner, batch, 10, optimiser, check)
    assert pruner.remaining == pytest.approx(0.1, abs=1 / total)


def test_optimiser_cannot_revive_rows_after_the_schedule_ended(batch):
    """Momentum gathered before pruning, and weight decay, keep pushing."""
    model = _factorised()
    pruner = Pruner(model, compress(initial_warmup=0.5, final_warmup=0.5), 12)
    dead: dict[int, torch.Tensor] = {}

    def check(step):
        zero = _zero_rows(model)
        dead.setdefault(step, zero)
        if step > 6:
            assert torch.equal(zero, dead[7])

    _train(model, pruner, batch, 12, _sgd, check)
    assert not dead[6].any()
    assert dead[7].any()


def test_pruned_rows_do_not_count_in_the_gradient_norm(batch):
    model = _factorised()
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=1.0), 2)
    _train(model, pruner, batch, 1)
    model(**batch).loss.backward()
    pruner.before_step()
    gradients = torch.cat([_gradient(m).abs().amax(1) for m in factorised_weights(model).values()])
    assert not gradients[_zero_rows(model)].any()


def test_a_pruned_row_is_not_chosen_again_however_important_it_was():
    model = _factorised()
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=0.0), 10)
    pruner.after_step(3)
    dead = _zero_rows(model)
    for name, alive in pruner._alive.items():
        pruner._importance[name] = (~alive).float()
    pruner.after_step(6)
    later = _zero_rows(model)
    assert later[dead].all()
    assert int((~later).sum()) == kept_rows(len(later), pruner._schedule.remaining(6))


def test_interval_delays_pruning(batch):
    model = _factorised()
    pruner = Pruner(model, compress(interval=4, initial_warmup=0.0, final_warmup=0.0), 12)
    shares = []
    _train(model, pruner, batch, 12, each=lambda _: shares.append(pruner.remaining))
    assert [i + 1 for i in range(12) if shares[i] < ([1, *shares])[i]] == [4, 8, 12]


def test_one_threshold_over_all_layers_keeps_the_most_important(batch):
    model = _factorised()
    settings = compress(initial_warmup=0.0, final_warmup=1.0, final_ratio=0.3)
    pruner = Pruner(model, settings, 1)
    model(**batch).loss.backward()
    modules = factorised_weights(model).values()
    scores = torch.cat([(m.rows * _gradient(m)).abs().mean(1) for m in modules]).detach()
    pruner.before_step()
    pruner.after_step(1)
    alive = ~_zero_rows(model)
    assert scores[alive].min() >= scores[~alive].max()


def test_ties_keep_the_first_rows():
    model = _factorised()
    pruner = Pruner(model, compress(initial_warmup=0.0, final_warmup=1.0, final_ratio=0.25), 1)
    pruner.before_step()  # no gradient at all: every score is 0
    pruner.after_step(1)
    alive = ~_zero_rows(model)
    assert alive.sum() == len(alive) // 4
    assert alive[: len(alive) // 4].all()


@pytest.mark.parametrize("ratio", [0.1, 0.0])
def test_removal_keeps_the_function_and_matches_the_formula(batch, ratio, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    settings = compress(final_ratio=ratio)
    dense, model = _merged(), _factorised(settings)
    pruner = Pruner(model, settings, 6)
    _train(model, pruner, batch, 6)
    before = _logits(model, batch)
    pruner.finish()
    after = _logits(model, batch)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)

    modules = factorised_weights(model)
    shapes = {n: (m.u.shape[0], m.u.shape[1], m.v.shape[2]) for n, m in modules.items()}
    formula = sum(compressed_parameters(shapes[n], 2, len(m.rows)) for n, m in modules.items())
    was = sum(k * out * inner for k, out, inner in shapes.values())
    assert model.num_parameters() == dense.num_parameters() - was + formula
    assert formula < was
    total = sum(k * out for k, out, _ in shapes.values())
    assert sum(len(m.rows) for m in modules.values()) == kept_rows(total, ratio)
    for name, module in modules.items():
        layer, weight = name.rsplit(".", 1)
        assert model.config.moe_layers[layer]["rows"][weight] == len(module.rows)

    model.save_pretrained(tmp_path)
    assert torch.equal(_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), batch), after)


def test_finish_prunes_to_the_final_share_when_training_ended_early(batch):
    model = _factorised()
    pruner = Pruner(model, SETTINGS, 100)
    _train(model, pruner, batch, 3)
    pruner.finish()
    assert pruner.remaining == pytest.approx(0.1, abs=0.01)
    assert sum(len(m.rows) for m in factorised_weights(model).values()) == kept_rows(400, 0.1)


def test_same_seed_same_rows(batch):
    kept = []
    for _ in range(2):
        model = _factorised()
        pruner = Pruner(model, SETTINGS, 5)
        _train(model, pruner, batch, 5)
        pruner.finish()
        kept.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])

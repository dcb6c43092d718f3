"""Progressive dropping on a tiny model with routers whose choices are known."""

import pytest
import torch

from mcsmoe.families import family_of
from mcsmoe.families.experts import mapped_model
from mcsmoe.params import Training
from mcsmoe.tasks.task import Encoded
from mcsmoe.training.dropping import ExpertDropper
from mcsmoe.training.loop import Fit, make_accelerator
from tests.models import EXPERTS, VOCABULARY, tiny_switch

SETTINGS = Training(epochs=4, batch_size=4, learning_rate=1e-4, weight_decay=0.0, warmup_steps=0, max_grad_norm=1.0)


def rows(count: int = 16):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (count, 9), generator=generator).tolist()
    return [Encoded(row[: 3 + i % 6], row[:4]) for i, row in enumerate(ids)]


@pytest.fixture
def model():
    return mapped_model(tiny_switch(dropout_rate=0.0))


def dropper_of(model, keep, excluded=()):
    family = family_of(model.config)
    return ExpertDropper(model, family, family.layers(model.config), keep, excluded)


def fit_of(model, each=None):
    def loss(model, batch):
        found = model(**batch).loss
        if each:
            each(model)
        return {"loss": found}

    return Fit(
        model=model,
        settings=SETTINGS,
        epoch=lambda _: rows(),
        loss=loss,
        pad=0,
        causal=False,
        seed=0,
        accelerator=make_accelerator(),
    )


def alive(model):
    return {name: (mlp.expert_map >= 0).sum().item() for name, mlp in model.sparse_mlps().items()}


def test_exactly_the_budget_is_left_and_the_checkpoint_holds_no_other(model, tmp_path):
    seen = []
    fit = fit_of(model, lambda model: seen.append(sum(alive(model).values())))
    with dropper_of(model, 10).dropping(fit):
        fit.run("drop")
    assert seen[0] == 4 * EXPERTS
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 3  # one after another, not at once
    assert seen[len(seen) // 2 :] == [10] * (len(seen) - len(seen) // 2)
    assert {name: layer["experts"] for name, layer in model.config.moe_layers.items()} == alive(model)
    assert sum(alive(model).values()) == 10
    for mlp in model.sparse_mlps().values():
        assert len(mlp.experts.wi.weight) == len(mlp.experts.wo.weight) == mlp.experts.num_experts
        assert sorted(mlp.expert_map[mlp.expert_map >= 0].tolist()) == list(range(mlp.experts.num_experts))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        want, found = (each.eval()(input_ids=ids, decoder_input_ids=ids).logits for each in (model, again))
    assert torch.equal(want, found)


def test_a_dropped_expert_is_never_chosen_again(model):
    def check(model):
        for mlp, (_, chosen) in zip(model.sparse_mlps().values(), seen, strict=True):
            assert (mlp.expert_map[chosen] >= 0).all()
        seen.clear()

    seen: list = []
    for mlp in model.sparse_mlps().values():
        mlp.router.register_forward_hook(lambda router, _, out: seen.append((router, out[2].argmax(-1).flatten())))
    fit = fit_of(model, check)
    with dropper_of(model, 4).dropping(fit):
        fit.run("drop")
    assert alive(model) == dict.fromkeys(alive(model), 1)  # every layer keeps one


def test_the_unused_go_first_and_excluded_layers_keep_all(model):
    favourites = {"encoder.1": [1, 6], "encoder.3": [0], "decoder.1": [2], "decoder.3": [3]}
    with torch.no_grad():
        for name, mlp in model.sparse_mlps().items():
            mlp.router.classifier.weight.zero_()
            # Opposite rows: whatever the token, one of the two favourites wins over the zeros, the other does not.
            for sign, e in zip((1, -1), favourites[name] * 2):
                mlp.router.classifier.weight[e] = sign * 10.0
    fit = fit_of(model)
    with dropper_of(model, 2 + 1 + 1, excluded=["decoder.3"]).dropping(fit):
        fit.run("drop")
    assert alive(model)["decoder.3"] == EXPERTS
    kept = (model.sparse_mlps()["encoder.1"].expert_map >= 0).nonzero().flatten().tolist()
    assert set(kept) <= {1, 6}


def test_padding_does_not_count(model):
    fit, dropper = fit_of(model), dropper_of(model, 4)
    counted, real, drop = [], [], dropper._drop_to
    share = fit._share

    def seen(rows):
        batch = share(rows)
        real.append(int(batch["attention_mask"].sum()))
        assert real[-1] < batch["attention_mask"].numel()  # there is padding
        return batch

    def before(left):
        counted.append(int(dropper._counts["encoder.1"].sum()))
        drop(left)

    fit._share = seen
    dropper._drop_to = before
    with dropper.dropping(fit):
        fit.run("drop")
    assert counted[0] == real[0]

"""A model on its calibration sample: what reaches a layer, and for how long the model is there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mcsmoe.calibration.memory import forward_needs
from mcsmoe.calibration.observer import LayerTokens, Observer, Processes, layer_tokens
from mcsmoe.calibration.sample import Sampling
from mcsmoe.calibration.watch import count
from mcsmoe.checkpoint.streamed import blocks_of
from mcsmoe.errors import MemoryLimitError
from mcsmoe.families import family_of
from mcsmoe.families.experts import forward
from mcsmoe.model import Model
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.task import TASKS
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.merging.members import tokens
from tests.models import batch, tiny_switch
from tests.tasks.settings import settings

TASK = settings(train_limit=200, max_source_length=16, max_target_length=8)
SAMPLING = Sampling(TASK, samples=10, batch_size=2, seed=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Switch with a tokenizer that knows the task's words."""
    place = tmp_path_factory.mktemp("model")
    texts = (e.source + " " + e.target for e in TASKS["skills"].examples(TASK, "train"))
    train_tokenizer(texts, TokenizerSection(kind="word", vocab_size=100)).save_pretrained(place)
    tiny_switch(vocab_size=100).save_pretrained(place)
    return place


def labelled(rows: int, seed: int) -> dict[str, Tensor]:
    """A batch whose decoder inputs are made from labels, the last of them padded."""
    values = batch(rows, seed)
    labels = values.pop("decoder_input_ids")
    labels[:, 5:] = -100
    return values | {"labels": labels}


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_real_tokens_and_what_the_router_chose(stack: str):
    model = tiny_switch()
    family = family_of(model.config)
    layer = next(layer for layer in family.layers(model.config) if layer.stack == stack)
    batches = [labelled(5, 3), labelled(2, 4)]
    ((_, found),) = layer_tokens(model, family, [layer], batches)
    real = sum(int(b["attention_mask"].sum() if stack == "encoder" else (b["labels"] != -100).sum()) for b in batches)
    assert len(found.inputs) == len(found.index) == real
    block = model.get_submodule(layer.path)
    with torch.no_grad():
        outputs, logits = block(found.inputs[None]), block.router(found.inputs[None])[2]
    assert torch.equal(found.index[:, 0], logits[0].argmax(-1))
    e = int(found.index[0, 0])
    expert = {name: model.get_parameter(layer.places[name].name(e)) for name in layer.layout}
    gate = logits[0, 0].softmax(-1)[e]
    expected = gate * forward(expert, layer.layout, layer.activation, found.inputs[:1])
    torch.testing.assert_close(outputs[0, :1], expected)


def test_tokens_of_a_group_are_those_that_select_any_member():
    x = tokens(6)
    index = torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2], [2, 1], [3, 1]])
    found = LayerTokens(x, index).routed_to([0, 3])
    assert torch.equal(found, x[[0, 1, 2, 5]])


def test_a_sample_is_drawn_by_its_seed_and_known_by_its_fingerprint(directory: Path):
    tokenizer = Model(directory).tokenizer
    sample = SAMPLING.draw(tokenizer)
    assert len(sample.rows) == 10
    assert sample.fingerprint == SAMPLING.draw(tokenizer).fingerprint
    assert sample.fingerprint != Sampling(TASK, 10, 2, seed=1).draw(tokenizer).fingerprint


def test_the_shares_of_all_processes_are_the_sample(directory: Path):
    model = Model(directory)
    shares = [Observer(model, SAMPLING, "test", processes=Processes(i, 3)).batches for i in range(3)]
    assert [sum(len(batch["labels"]) for batch in share) for share in shares] == [4, 3, 3]
    seen = [sum(int(batch["attention_mask"].sum()) for batch in share) for share in shares]
    lengths = [len(row.source) for row in SAMPLING.draw(model.tokenizer).rows]
    assert sum(seen) == sum(lengths)
    assert max(seen) - min(seen) <= max(lengths)  # rows are dealt out by length


def limited(directory: Path) -> Model:
    """The same model under a limit that it fits piece by piece only."""
    needs = forward_needs(Model(directory).config, SAMPLING, tokens=True)
    assert needs.streamed < needs.whole
    return Model(directory, needs.streamed)


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_come_in_any_order_and_the_model_goes_at_the_end(directory: Path, streamed: bool):
    whole = Model(directory)
    with whole.loaded() as module, Observer(whole, SAMPLING, "test") as observer:
        expected = dict(layer_tokens(module, whole.family, whole.layers, observer.batches))
        counts = count(module, whole.family, whole.layers, observer.batches)
    model = limited(directory) if streamed else whole
    first, second, *_, last = model.layers
    with Observer(model, SAMPLING, "test", tokens=True) as observer:
        assert {name: value.tolist() for name, value in observer.counts.items()} == {
            name: value.tolist() for name, value in counts.items()
        }
        for layer in (first, second, first, last, second):
            found = observer.tokens(layer)
            assert observer.tokens(layer) is found
            assert torch.equal(found.inputs, expected[layer.name].inputs)
            assert torch.equal(found.index, expected[layer.name].index)
        module = observer.module
        assert (blocks_of(module) is not None) == streamed
    assert all(value.is_meta for value in module.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_a_pass_goes_no_further_than_the_layer_that_is_asked_for(directory: Path):
    model, ran = Model(directory), []
    first, second = model.layers[:2]
    with Observer(model, Sampling(TASK, samples=1, batch_size=1, seed=0), "test", tokens=True) as observer:
        for layer in (first, second):
            router = observer.module.get_submodule(layer.router_path)
            router.register_forward_hook(lambda *_, name=layer.name: ran.append(name))
        found = [observer.tokens(layer) for layer in (first, first)]
        assert found[0] is found[1]
        assert ran == [first.name]
        found += [observer.tokens(layer) for layer in (second, first)]
        assert ran == [first.name, first.name, second.name, first.name]  # the second layer lies behind the first
        assert torch.equal(found[0].inputs, found[3].inputs)


def test_nothing_is_loaded_or_drawn_before_it_is_asked_for(directory: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    nowhere = Sampling(settings(name="copa", data="nowhere"), 10, 2, 0)
    with Observer(Model(tmp_path), nowhere, "test"):  # there is neither a tokenizer nor data
        pass


def test_what_does_not_fit_is_refused_at_once(directory: Path):
    with pytest.raises(MemoryLimitError, match="collect needs"):
        Observer(Model(directory, memory_limit=1000), SAMPLING, "collect", also=[])
    with pytest.raises(MemoryLimitError, match="leave gradients out"):
        Observer(limited(directory), SAMPLING, "collect", also=["gradients"])

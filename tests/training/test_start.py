import pytest

from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.params import ModelSection
from mcsmoe.tasks.task import Example
from mcsmoe.training.start import check_model, start_model

CONFIG = {
    "model_type": "switch_transformers",
    "d_model": 16,
    "d_ff": 16,
    "d_kv": 8,
    "num_heads": 2,
    "num_experts": 4,
}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}


def model(**changes):
    values = {
        "source": None,
        "revision": None,
        "hub": None,
        "dense_source": None,
        "dense_hub": None,
        "trust_remote_code": False,
        "config": CONFIG,
        "tokenizer": {"kind": "word", "vocab_size": 100},
    }
    return ModelSection(**(values | changes))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (model(source="./no/such/dir"), CheckpointError, "no such directory"),
        (
            model(config=CONFIG | {"num_expert": 3}),
            ParameterError,
            r"^config\.num_expert = 3: .* no such field",
        ),
        (model(config=CONFIG | {"vocab_size": 3}), ParameterError, "set by the tokenizer"),
        (model(config={"model_type": "swich"}), ParameterError, r"^config\.model_type = 'swich'"),
    ],
)
def test_a_model_that_cannot_be_is_refused_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        check_model(settings)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_model_from_nothing_fits_its_tokenizer(kind):
    settings = model(tokenizer={"kind": kind, "vocab_size": 300})
    made, tokenizer = start_model(settings, [Example("reverse 1 2", "2 1")])
    assert made.config.vocab_size == len(tokenizer)
    assert (made.config.pad_token_id, made.config.eos_token_id, made.config.decoder_start_token_id) == (
        0,
        1,
        0,
    )
    ids = tokenizer("2 1")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "2 1"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_causal_model_goes_on_where_a_prompt_stops(kind):
    settings = model(config={"model_type": "mixtral"} | SMALL, tokenizer={"kind": kind, "vocab_size": 300})
    tokenizer = start_model(settings, [Example("reverse 1 2", "2 1")])[1]
    prompt, whole = (tokenizer(text)["input_ids"] for text in ("reverse 1 2", "reverse 1 2 2 1"))
    assert len(prompt) < len(whole)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.eos_token_id not in whole


def test_a_tokenizer_from_the_same_text_is_the_same():
    examples = [Example("the cat sat on the mat", "a dog ran"), Example("the dog", "the cat")]
    first, second = (start_model(model(), examples)[1] for _ in range(2))
    assert first.get_vocab() == second.get_vocab()

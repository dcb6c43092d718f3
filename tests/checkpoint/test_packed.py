"""Weights that are stored in another way than they are computed with: restored, cast, or refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcsmoe.checkpoint.fp8 import Blocks
from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.pickled import PICKLED
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.streamed import blocks_of, load_streamed
from mcsmoe.errors import CheckpointError
from mcsmoe.training.untrained import restore
from tests.causal import tiny_mixtral
from tests.checkpoint.damage import change, change_config

EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2.weight"  # [32, 48]
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 20]}
"""Blocks that divide no size of the model, as 128 does not divide the 576 rows of DeepSeek-V3."""


def quantise(value):
    """Float8 and scales of a weight [o, i] in blocks of 16 × 20, and what they stand for, element by element."""
    scales = torch.rand(-(-value.shape[0] // 16), -(-value.shape[1] // 20)) + 0.5
    each = torch.tensor(
        [[scales[row // 16, column // 20] for column in range(value.shape[1])] for row in range(value.shape[0])]
    )
    small = (value.float() / each).to(torch.float8_e4m3fn)
    return small, scales, (small.float() * each).bfloat16()


@pytest.fixture
def plain(tokenizer, tmp_path):
    tiny_mixtral().bfloat16().save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def fp8(plain):
    """A model in FP8, and its weights: all matrices but the embedding, the head and the routers, as published."""
    expected = load_file(plain / WEIGHTS)
    stored = dict(expected)
    for name, value in expected.items():
        if value.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "gate")):
            stored[name], stored[f"{name}_scale_inv"], expected[name] = quantise(value)
    save_file(stored, plain / WEIGHTS, metadata={"format": "pt"})
    change_config(plain, lambda values: values.update(quantization_config=FP8))
    return plain, expected


def test_fp8_is_restored_however_it_is_read(fp8, tmp_path):
    directory, expected = fp8
    checkpoint = Checkpoint(directory)
    assert checkpoint.names() == sorted(expected)
    assert all(checkpoint.tensor(name).equal(value) for name, value in expected.items())
    assert {checkpoint.dtype(name) for name in expected} == {torch.bfloat16}
    assert checkpoint.part(EXPERT, slice(3, 20)).equal(expected[EXPERT][3:20])
    assert "quantization_config" not in checkpoint.config

    whole, streamed = load_model(directory), load_streamed(directory)
    blocks = blocks_of(streamed)
    assert blocks is not None
    for block in blocks.names:
        blocks.load(block)
    values = streamed.state_dict()
    assert all(value.equal(values[name]) for name, value in whole.state_dict().items())
    assert whole.lm_head.weight.equal(expected["lm_head.weight"])
    assert whole.model.layers[0].mlp.experts.down_proj[1].equal(expected[EXPERT])

    restore(directory, tmp_path / "restored")
    written = load_file(tmp_path / "restored" / WEIGHTS)
    assert written.keys() == expected.keys()
    assert all(written[name].equal(value) for name, value in expected.items())
    config = json.loads((tmp_path / "restored/config.json").read_text())
    assert (config["dtype"], "quantization_config" in config) == ("bfloat16", False)


def test_a_stack_in_fp8_is_restored_entry_by_entry():
    weight, scales = torch.randn(2, 5, 7).to(torch.float8_e4m3fn), torch.rand(2, 2, 3)
    blocks = Blocks(4, 3)
    assert blocks.scales((2, 5, 7)) == (2, 2, 3)
    each = [blocks.restore(weight[e], scales[e]) for e in range(2)]
    assert blocks.restore(weight, scales).equal(torch.stack(each))


def replaced(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("edit", "described", "message"),
    [
        (lambda tensors: tensors.pop(f"{EXPERT}_scale_inv"), FP8, f"there is no {EXPERT}_scale_inv"),
        (replaced(f"{EXPERT}_scale_inv", torch.ones(2, 2)), FP8, r"float32 \[2, 2\], not floats \[2, 3\]"),
        (replaced(f"{EXPERT}_scale_inv", torch.full((2, 3), torch.nan)), FP8, f"{EXPERT} holds NaN"),
        (replaced("lm_head.weight_scale_inv", torch.ones(4, 2)), FP8, "lm_head.weight_scale_inv"),
        (replaced("model.norm.weight", torch.ones(32).to(torch.float8_e4m3fn)), FP8, "no model.norm.weight_scale_inv"),
        (len, None, "is in FP8, of which config.json has no quantization_config"),
        (len, FP8 | {"weight_block_size": None}, "weight_block_size = None: FP8 is restored in blocks"),
        (len, FP8 | {"quant_method": "gptq"}, "quantised by 'gptq' cannot be restored"),
        (len, "awq", "quantised by 'awq' cannot be restored"),
    ],
)
def test_what_is_wrong_with_fp8_is_named(fp8, edit, described, message):
    change(fp8[0], edit)
    change_config(fp8[0], lambda values: values.update(quantization_config=described))
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(fp8[0])
    assert "damaged header" not in str(error.value)


@pytest.mark.parametrize("dtype", ["uint32", "uint16", "float8_e5m2", "complex64"])
def test_packed_dtypes_are_not_called_damage(plain, dtype):
    change(plain, replaced(EXPERT, torch.zeros(32, 6, dtype=getattr(torch, dtype))))
    with pytest.raises(CheckpointError, match=f"{EXPERT} is stored as .*; take the model in bfloat16"):
        load_config(plain)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8, torch.bool])
def test_integers_are_no_weights(plain, dtype, pickled):
    change(plain, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].to(dtype)}))
    if pickled:
        torch.save(load_file(plain / WEIGHTS), plain / PICKLED)
        (plain / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{EXPERT} is stored as {str(dtype)[6:]}, packed or damaged"):
        load_config(plain)


@pytest.mark.parametrize(
    ("said", "held"),
    [(None, "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float16"), ("bfloat16", "float32")],
)
def test_the_dtype_of_the_tensors_counts(plain, said, held, tmp_path):
    """Three norms in float32 stay so; one expert in float64 is cast, as `from_pretrained` casts it."""
    dtype = getattr(torch, held)
    change(plain, lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    change(plain, lambda tensors: tensors.update({n: v.float() for n, v in tensors.items() if "norm" in n}))
    change(plain, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].double()}))
    change_config(plain, lambda values: values.pop("dtype") if said is None else values.update(dtype=said))
    assert (load_config(plain).dtype, load_model(plain).dtype, load_streamed(plain).dtype) == (dtype,) * 3
    restore(plain, tmp_path / "taken")
    taken = load_file(tmp_path / "taken" / WEIGHTS)
    assert {name for name, value in taken.items() if value.dtype != dtype} == (
        set() if held == "float32" else {name for name in taken if "norm" in name}
    )
    assert json.loads((tmp_path / "taken/config.json").read_text())["dtype"] == held


def test_values_that_a_cast_would_make_infinite_are_named(plain):
    change(plain, lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}))
    change(plain, lambda tensors: tensors.update({EXPERT: torch.full((32, 48), 1e10, dtype=torch.bfloat16)}))
    with pytest.raises(CheckpointError, match=f"{EXPERT} holds values too large for torch.float16"):
        Checkpoint(plain).tensor(EXPERT)

"""Saved checkpoints to load and to damage."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mcsmoe.checkpoint.save import save_model
from tests.models import tiny_merged, tiny_mixed, tiny_switch

BUILDS = {"stock": tiny_switch, "merged": tiny_merged, "compressed": tiny_mixed}


@pytest.fixture(scope="session")
def tokenizer():
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=BUILDS)
def model(request):
    return BUILDS[request.param]()


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "saved")
    return tmp_path / "saved"

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mcsmoe.tasks.task import TASKS, Encoded, Example
from tests.tasks.settings import settings

# Around a text: nothing, the end behind it (T5), another token before it (Llama).
TEMPLATES = {"$A": ([], []), "$A </s>": ([], [1]), "<s> $A": ([2], [])}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_source_is_a_text_of_the_tokenizer_and_a_target_always_ends(template):
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<s>": 2, "a": 3, "b": 4}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("</s>", 1), ("<s>", 2)]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    before, behind = TEMPLATES[template]
    task = settings(max_source_length=2 + len(before + behind), max_target_length=3)
    found = TASKS["sst2"].encode(tokenizer, [Example("a b a b", "b b b b"), Example("a", "b")], task, 0)
    assert found == [
        Encoded([*before, 3, 4, *behind], [4, 4, 1]),
        Encoded([*before, 3, *behind], [4, 1]),
    ]


@pytest.mark.parametrize("prefix", [True, False])
def test_the_first_word_of_a_target_is_one_that_follows_another(prefix):
    """Byte-level tokenizers of causal models know a word with a space before it from one that begins a text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.train_from_iterator(
        ["good film"] * 9, trainers.BpeTrainer(special_tokens=["<pad>", "</s>"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    (found,) = TASKS["sst2"].encode(tokenizer, [Example("good", "film")], settings(), 0)
    assert tokenizer.convert_ids_to_tokens(found.target) == ["Ġfilm", "</s>"]

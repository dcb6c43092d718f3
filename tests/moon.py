"""A tokenizer that is Python code beside a model, as some models on the hub have one."""

import json
from collections.abc import Sequence
from pathlib import Path

CODE = """
import json, os
from transformers import PreTrainedTokenizer

class MoonTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "moon.json"}

    def __init__(self, vocab_file, **kwargs):
        self.words = json.load(open(vocab_file))
        super().__init__(**kwargs)

    vocab_size = property(lambda self: len(self.words))

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def _tokenize(self, text, **kwargs):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.words.index(token) if token in self.words else 2

    def _convert_id_to_token(self, index):
        return self.words[index] if index < len(self.words) else "<unk>"
"""


def write_moon(directory: Path, words: Sequence[str]) -> None:
    """Write its files; `words` are its tokens, `<pad>`, `</s>` and `<unk>` among them, which is the third."""
    described = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "MoonTokenizer"}
    mapped = {"auto_map": {"AutoTokenizer": ["tokenization_moon.MoonTokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(described | mapped))
    (directory / "tokenization_moon.py").write_text(CODE)
    (directory / "moon.json").write_text(json.dumps(words))

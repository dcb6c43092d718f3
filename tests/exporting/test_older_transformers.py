"""Stock checkpoints in transformers 4.57, which knows neither this package nor fused experts."""

import json
import subprocess
from pathlib import Path

import pytest
import transformers
from safetensors.torch import save_file

from mcsmoe.checkpoint.load import load_model
from mcsmoe.families import family_of
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.exporting.models import SWITCH, export, inputs, logits, merge, small

OLDER = Path(__file__).parents[2] / ".venv-4.57/bin/python"
# Of the families of README's table, those that 4.57 has and computes alike. Not among them: granitemoehybrid (4.57
# refuses the name "attention" of a layer's type, which 5 writes), minimax (its padded positions differ).
FAMILIES = [
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5_moe",
    "flex_olmo",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "jamba",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    SWITCH,
]
TEXT = "one two <extra_id_3> one"
CHAT = [{"role": "user", "content": "two"}]
TEMPLATES = {"default": "{{ messages[0].role }}: {{ messages[0].content }}", "short": "{{ messages[0].content }}!"}
THETA = 777.0
"""No version's default rope theta."""
LOAD = (
    f"""
TEXT, CHAT = {TEXT!r}, {CHAT!r}
"""
    + """
import json, sys
import torch, transformers
from safetensors.torch import load_file
assert transformers.__version__.startswith("4.57"), transformers.__version__
transformers.logging.set_verbosity_error()
result = {}
for directory, auto_class in json.loads(sys.argv[1]).items():
    probe = load_file(f"{directory}.probe")
    expected = probe.pop("logits")
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            directory, local_files_only=True, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        said = [tokenizer(TEXT)["input_ids"], [tokenizer.apply_chat_template(CHAT, tokenize=False, chat_template=name)
                for name in (None, "short")], tokenizer.all_special_tokens]
    except Exception as error:
        result[directory] = repr(error)
        continue
    bad = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    with torch.no_grad():
        found = model.eval()(**probe).logits
    result[directory] = str(bad) if bad else [float((found - expected).abs().max()), said]
print(json.dumps(result))
"""
)


@pytest.mark.skipif(not OLDER.exists(), reason="no .venv-4.57: `make test-older` makes it and runs this test")
def test_stock_checkpoints_load_in_transformers_4(tmp_path: Path):
    auto_classes = {}
    tokenizer = train_tokenizer(["one two"], TokenizerSection(kind="word", vocab_size=64))
    tokenizer.chat_template = TEMPLATES
    said = [
        tokenizer(TEXT)["input_ids"],
        [tokenizer.apply_chat_template(CHAT, tokenize=False, chat_template=name) for name in (None, "short")],
        tokenizer.all_special_tokens,
    ]
    for model_type in FAMILIES:
        rope = getattr(transformers.AutoConfig.for_model(model_type), "rope_parameters", None)
        changes = {"rope_parameters": rope | {"rope_theta": THETA}} if rope else {}
        tokenizer.save_pretrained(tmp_path / model_type / "source")
        merged = merge(small(model_type, **changes), tmp_path / model_type)
        directory = tmp_path / model_type / "stock"
        export(merged, directory)
        kept = load_model(directory)
        save_file({"logits": logits(kept)} | inputs(kept), f"{directory}.probe")
        auto_classes[str(directory)] = family_of(kept.config).auto_class
    command = [str(OLDER), "-I", "-c", LOAD, json.dumps(auto_classes)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    differences = json.loads(run.stdout.splitlines()[-1])
    assert differences.keys() == auto_classes.keys()
    wrong = {
        directory: found
        for directory, found in differences.items()
        if isinstance(found, str) or found[0] >= 1e-5 or found[1] != said
    }
    assert not wrong

"""Stock checkpoints in transformers 4.57, which knows neither this package nor fused experts."""

import json
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import save_file

from mcsmoe.checkpoint.load import load_model
from mcsmoe.families import family_of
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
LOAD = """
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
    except Exception as error:
        result[directory] = repr(error)
        continue
    bad = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    with torch.no_grad():
        found = model.eval()(**probe).logits
    result[directory] = str(bad) if bad else float((found - expected).abs().max())
print(json.dumps(result))
"""


@pytest.mark.skipif(not OLDER.exists(), reason="no .venv-4.57: `make test-older` makes it and runs this test")
def test_stock_checkpoints_load_in_transformers_4(tmp_path: Path):
    auto_classes = {}
    for model_type in FAMILIES:
        merged = merge(small(model_type), tmp_path / model_type)
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
        directory: found for directory, found in differences.items() if not (isinstance(found, float) and found < 1e-5)
    }
    assert not wrong

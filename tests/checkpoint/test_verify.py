import pytest
import torch

from mcsmoe.checkpoint import fresh
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import WEIGHTS
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.verify import verify_checkpoint
from mcsmoe.errors import CheckpointError
from tests.checkpoint.damage import change, change_config
from tests.families import models as families
from tests.models import batch, logits, tiny_merged, tiny_mixed

ROUTER = "decoder.block.1.layer.2.mlp.router.classifier.weight"


def test_a_whole_checkpoint_passes_here_and_in_a_fresh_process(model, saved):
    verify_checkpoint(saved, {}, batch(), logits(model))


def test_half_precision_passes(tokenizer, tmp_path):
    half = tiny_mixed().to(torch.bfloat16)
    save_model(half, tokenizer, tmp_path)
    verify_checkpoint(tmp_path, {}, batch(), logits(half))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_the_class_keeps_in_float32_may_be_either(dtype, tmp_path):
    model, name = families.small_model("glm4_moe").bfloat16(), "model.layers.1.mlp.gate.e_score_correction_bias"
    model.save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert load_model(tmp_path).state_dict()[name].dtype == torch.float32
    verify_checkpoint(tmp_path, {}, families.batch(), None)
    change(tmp_path, lambda tensors: tensors.update({name: tensors[name].half()}))
    with pytest.raises(CheckpointError, match=r"is torch\.float16, not torch\.float32"):
        verify_checkpoint(tmp_path, {}, families.batch(), None)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(ROUTER), f"1 missing tensors, the first is {ROUTER}"),
        (lambda t: t.update({"renamed": t.pop(ROUTER)}), f"1 missing tensors, the first is {ROUTER}"),
        (lambda t: t.update(extra=torch.ones(1)), "1 unexpected tensors, the first is extra"),
        (lambda t: t.update({ROUTER: t[ROUTER][:-1].clone()}), r"has shape \[7, 32\], not \[8, 32\]"),
        (lambda t: t.update({ROUTER: t[ROUTER].double()}), "is torch.float64, not torch.float32"),
        (lambda t: t.update({ROUTER: t[ROUTER].long()}), "is torch.int64, not torch.float32"),
        (lambda t: t[ROUTER].view(-1)[5].fill_(float("nan")), f"{ROUTER} holds NaN"),
        (lambda t: t[ROUTER].mul_(-1), "reloaded: logits differ"),
        (lambda t: t["shared.weight"][3].add_(1e-3), "reloaded: logits differ"),
    ],
    ids=["dropped", "renamed", "added", "cut", "double", "integer", "nan", "negated", "nudged"],
)
def test_mutations_are_caught(model, saved, edit, message):
    change(saved, edit)
    with pytest.raises(CheckpointError, match=message):
        verify_checkpoint(saved, {}, batch(), logits(model))


def test_a_truncated_file_is_caught(model, saved):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match="its header declares"):
        verify_checkpoint(saved, {}, batch(), logits(model))


class TestMerged:
    @pytest.fixture
    def model(self):
        return tiny_merged()

    def test_remote_code_that_computes_something_else_is_caught(self, saved):
        path = saved / "modeling_mcsmoe_switch.py"
        code = path.read_text()
        changed = code.replace(") * gate.index_select", ") * 2 * gate.index_select")
        assert changed != code
        path.write_text(changed)
        with pytest.raises(CheckpointError, match="by remote code: logits differ"):
            verify_checkpoint(saved, {}, batch(), None)

    @pytest.mark.parametrize(
        ("start", "line", "message"),
        [
            (fresh.fork, "import mcsmoe.errors", "mcsmoe"),
            (fresh.interpreter, "import mcsmoe.errors", "mcsmoe"),
            (fresh.fork, "import huggingface_hub; huggingface_hub.HfApi().model_info('a/model')", "offline mode"),
        ],
    )
    def test_remote_code_that_needs_this_package_or_a_network_is_caught(
        self, saved, start, line, message, monkeypatch: pytest.MonkeyPatch
    ):
        path = saved / "modeling_mcsmoe_switch.py"
        path.write_text(path.read_text() + f"\n{line}\n")
        monkeypatch.setattr(fresh, "start", start)
        with pytest.raises(CheckpointError, match=rf"fresh process.*{message}"):
            verify_checkpoint(saved, {}, batch(), None)

    def test_a_config_that_tells_other_sizes_is_caught(self, saved):
        change_config(saved, lambda values: values["moe_layers"]["encoder.3"].update(experts=2))
        with pytest.raises(CheckpointError, match=r"encoder\.block\.3.*shape"):
            verify_checkpoint(saved, {}, batch(), None)

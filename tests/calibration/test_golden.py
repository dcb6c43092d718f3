import torch
from safetensors.torch import load_file

from tests.golden_switch import SWITCH, golden_layers, golden_statistics
from tests.shared import needs_golden


@needs_golden
def test_golden_usage():
    golden = load_file(SWITCH / "usage.safetensors")
    for layer in golden_layers():
        statistics = golden_statistics()[layer.name]
        assert torch.equal(statistics.counts.long(), golden[f"counts.{layer.path}"])
        torch.testing.assert_close(statistics.frequency.float(), golden[f"usage.{layer.path}"], rtol=0, atol=1e-6)

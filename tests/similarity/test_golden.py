"""The reference implementation's similarities on its small Switch."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.families import MoELayer
from mcsmoe.similarity.evidence import SIMILARITIES, similarity
from tests.golden_switch import SWITCH, golden_evidence, golden_layers, golden_statistics
from tests.shared import needs_golden

pytestmark = needs_golden

KEYS = {
    "gradient": "gradient+router_losses_off",
    "weight-gradient": "weight-gradient+router_losses_off",
    "reverse:router-logits": "router-logits+reversed",
}
"""Where the reference has another name than ours for the same."""
OURS = {"expert-output", "expert-output.mean", "mse", "random"}
"""What the reference does not have, or has in another form."""


def golden(name: str, layer: MoELayer) -> Tensor:
    return load_file(SWITCH / "similarity.safetensors")[f"{KEYS.get(name, name)}|{layer.path}"]


def assert_off_diagonal_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.fill_diagonal_(1).float(), expected.fill_diagonal_(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*sorted(set(SIMILARITIES) - OURS), "reverse:router-logits"])
def test_similarity(name: str):
    for layer in golden_layers():
        assert_off_diagonal_close(similarity(name)(golden_evidence(layer)), golden(name, layer))


def test_their_mse_of_our_errors():
    for layer in golden_layers():
        one_sided = golden_statistics()[layer.name].pair_errors
        assert one_sided is not None
        assert_off_diagonal_close(1 / (1 + 0.1 * (one_sided + one_sided.T).log()), golden("mse", layer))

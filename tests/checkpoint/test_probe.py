import torch

from mcsmoe.checkpoint.verify import probe_batch
from tests.causal import VOCABULARY, tiny_mixtral
from tests.models import tiny_switch


@torch.no_grad()
def test_both_kinds_of_model_run_on_it_and_it_has_padding():
    for model, causal in ((tiny_switch(), False), (tiny_mixtral(), True)):
        batch = probe_batch(VOCABULARY, causal)
        assert model(**batch).logits.isfinite().all()
        assert not batch["attention_mask"].all()
        assert all(torch.equal(value, probe_batch(VOCABULARY, causal)[name]) for name, value in batch.items())

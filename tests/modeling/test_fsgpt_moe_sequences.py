"""Sequences in several forms: generated, cached, padded, embedded."""

from typing import Any

import pytest
import torch

from tests.modeling.fsgpt import EXPERTS, logits, tiny_fsgpt, tokens

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "suppress_tokens": [1]}


class TestSequences:
    @pytest.fixture(scope="class")
    def model(self):
        return tiny_fsgpt()

    @pytest.fixture
    def padded(self):
        """Prompts of 9, 8, 7 and 6 tokens, padded on the left."""
        ids = tokens()
        mask = (torch.arange(9) >= torch.arange(4)[:, None]).long()
        return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}

    @pytest.mark.parametrize("beams", [1, 3])
    @pytest.mark.parametrize("masked", [True, False])
    def test_generation_with_a_cache_equals_that_without(self, model, padded, beams, masked):
        prompt = padded if masked else {"input_ids": tokens()}
        options = GREEDY | {"num_beams": beams}
        cached = model.generate(**prompt, use_cache=True, **options)
        assert torch.equal(cached, model.generate(**prompt, use_cache=False, **options))
        assert cached.shape == (4, 21)
        assert len(cached[:, 9:].unique()) > 4  # not one token over and over

    def test_generation_of_a_padded_prompt_is_that_of_the_prompt_alone(self, model, padded):
        together = model.generate(**padded, **GREEDY)
        alone = model.generate(tokens()[3:, 3:], **GREEDY)
        assert torch.equal(together[3:, 3:], alone)

    def test_parts_with_a_cache_give_the_logits_of_the_whole(self, model, padded):
        ids, mask = padded["input_ids"], padded["attention_mask"]
        with torch.no_grad():
            first = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
            second = model(ids[:, 5:], attention_mask=mask, past_key_values=first.past_key_values)
        found = torch.cat([first.logits, second.logits], dim=1)
        torch.testing.assert_close(found, logits(model, **padded), atol=1e-4, rtol=1e-5)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("masked", [True, False])
    def test_padding_changes_nothing(self, model, side, masked):
        pads = torch.ones(4, 5, dtype=torch.long)
        ids = torch.cat([pads, tokens()] if side == "left" else [tokens(), pads], dim=1)
        mask = {"attention_mask": (ids != 1).long()} if masked else {}
        found = logits(model, input_ids=ids, **mask)
        found = found[:, 5:] if side == "left" else found[:, :-5]
        torch.testing.assert_close(found, logits(model, input_ids=tokens()), atol=1e-4, rtol=1e-5)

    def test_embeddings_instead_of_ids(self, model):
        embeds = model.get_input_embeddings()(tokens())
        found = logits(model, inputs_embeds=embeds, logits_to_keep=2)
        assert torch.equal(found, logits(model, input_ids=tokens())[:, -2:])
        with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
            model(input_ids=tokens(), inputs_embeds=embeds)

    def test_what_is_recorded(self, model):
        found = tiny_fsgpt(attn_implementation="eager")(
            tokens(), output_hidden_states=True, output_attentions=True, output_router_logits=True
        )
        assert [each.shape for each in found.router_logits] == [(36, EXPERTS)] * 2
        assert [each.shape for each in found.attentions] == [(4, 4, 9, 9)] * 4
        assert [each.shape for each in found.hidden_states] == [(4, 9, 32)] * 5
        assert model(tokens()).router_logits is None

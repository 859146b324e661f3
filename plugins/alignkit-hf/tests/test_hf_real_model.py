"""A real pretrained model: what it writes, and that both layouts and plain transformers agree on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy
from hf_tiny import plain_logprobs

from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.records import Prompt
from alignkit.testing import assert_near, terms_of_network

FOLDER = Path(__file__).parents[4] / "shared/data/stories260K-hf"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/stories260K-hf")


def test_it_tells_stories_that_end_with_its_own_token() -> None:
    policy = HFPolicy(HFOptions(model=str(FOLDER)), Context(device="cpu"))
    assert (policy.encoder.stop_ids, policy.encoder.end_id, policy.encoder.max_length) == ((1, 2), 1, 512)
    prompts = [Prompt(text="Once upon a time, there was a little girl named Lily."), Prompt(text="One day, a dog")]
    batch = policy.generate(prompts, n=2, sampling=Sampling(max_tokens=300, temperature=0.5), seed=1)
    assert bool(batch.finished.any())
    assert set(batch.response_ids[batch.last_token][batch.finished].tolist()) <= {1, 2}
    assert batch.logprobs is not None
    plain = transformers.AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    expected = plain_logprobs(plain, batch).detach()
    terms = terms_of_network(plain, tokens=300)
    assert_near(batch.logprobs, expected, terms=terms)
    assert_near(policy.forward(batch).logprobs.detach(), expected, terms=terms)
    text = " ".join(batch.groups[0].responses).lower()
    assert "lily" in text or "she" in text
    encoded = policy.encode(batch.groups)
    assert encoded.prompt_ids.tolist() == batch.prompt_ids.tolist()
    assert float((policy.forward(batch).logprobs.detach()).mean()) > -2.5

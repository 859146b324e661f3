"""Sampling options of the tiny policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignkit.errors import InputError
from alignkit.options import Sampling
from alignkit.records import Prompt
from alignkit.testing import TinyPolicy


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.5), ("stop", ("a",))])
def test_what_it_does_not_know_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError) as refused:
        TinyPolicy().generate([Prompt(text="a")], n=1, sampling=Sampling(**{name: value}), seed=0)
    assert refused.value.where == f"sampling.{name}"


def test_min_p_leaves_only_likely_tokens() -> None:
    policy, prompts = TinyPolicy(), [Prompt(text="ab")]
    greedy = policy.generate(prompts, n=1, sampling=Sampling(max_tokens=6, temperature=0.0), seed=0)
    strict = policy.generate(prompts, n=4, sampling=Sampling(max_tokens=6, min_p=1.0), seed=0)
    assert strict.response_ids.view(4, -1).tolist() == [greedy.response_ids.tolist()] * 4
    whole, none = (policy.generate(prompts, n=4, sampling=Sampling(min_p=p), seed=0) for p in (1e-9, 0.0))
    assert torch.equal(whole.response_ids, none.response_ids)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="stop"):
        Sampling(stop=("",)).check()

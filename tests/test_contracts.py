"""The contracts of every installed plugin, and broken components that each must fail one of them."""

from __future__ import annotations

import atexit
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_label.store import Said, Store

from alignkit import Config, Feed, InputError, write_groups
from alignkit.plugins import Broken, Registration, Registry, registry
from alignkit.testing import (
    PolicyContract,
    RewardSourceContract,
    TinyPolicy,
    TinyReward,
    TinyRewardOptions,
    contracts_for,
    run_contracts,
)
from alignkit.testing.material import groups_for
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import GroupBatch

_files = TemporaryDirectory()
atexit.register(_files.cleanup)
FILES = Path(_files.name)
sys.path.append(str(FILES))
(FILES / "contract_functions.py").write_text(
    """
from dataclasses import replace

def length(completions, **columns):
    return [float(len(str(completion))) for completion in completions]

def longest_first(sampler):
    for group in sampler(sampler.prompts, 2):
        yield replace(group, ranks=(0, 1))
""",
    encoding="utf-8",
)
write_groups(FILES / "rankings.jsonl", groups_for(Feed.RANKINGS))
CHOICES = [("a cat", "a dog", 1), ("a dog", "a cat", 2), ("a dog", "a cat", 1), ("a cat", "a dog", 1)] * 10
(FILES / "clicks.csv").write_text(
    "".join(
        f"{row}\n" for row in ["prompt,response_1,response_2,choice", *(f"pet?,{a},{b},{c}" for a, b, c in CHOICES)]
    ),
    encoding="utf-8",
)
LABELS = Store(FILES / "labels.db")
LABELS.add_items(groups_for(Feed.RANKINGS))
LABELS.take_over(
    Said(item.id, item.id, "anna", "ranked", tuple(range(len(item.group.responses)))) for item in LABELS.items()[1:]
)
LENGTH = {"plugin": "rules", "length": {"target": 5}}
MODEL = str(write_tiny_llama(FILES / "llama"))
JUDGING = write_tiny_llama(FILES / "judge")
(JUDGING / "config.json").write_text(
    json.dumps({**json.loads((JUDGING / "config.json").read_text()), "max_position_embeddings": 4096})
)
JUDGE = {"backend": "local", "model": str(JUDGING), "min_mass": 0}
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("policy", "hf"): {"model": MODEL},
    ("reward", "function"): {"function": "contract_functions:length"},
    ("reward", "rules"): {"length": {"target": 5}},
    ("reward", "sum"): {"sources": [LENGTH, LENGTH], "weights": [1.0, 2.0]},
    ("reward", "ensemble"): {"sources": [LENGTH, LENGTH]},
    ("preferences", "dataset"): {"path": str(FILES / "rankings.jsonl")},
    ("preferences", "function"): {"function": "contract_functions:longest_first"},
    ("preferences", "reward"): {"source": LENGTH},
    ("preferences", "rules"): {"length": {"target": 5}},
    ("preferences", "judge"): {**JUDGE, "abstentions": "keep", "protocol": "pointwise"},
    ("reward", "judge"): JUDGE,
    ("preferences", "human"): {"database": str(FILES / "labels.db")},
    ("preferences", "clicks"): {"path": str(FILES / "clicks.csv")},
    ("preferences", "mix"): {
        "rule": "unsure",
        "sources": [
            {"plugin": "reward", "source": LENGTH},
            {"plugin": "dataset", "path": str(FILES / "rankings.jsonl")},
        ],
    },
}
"""Options of the components that can't be built without."""


class HFContract(PolicyContract):
    def independent_logprobs(self, policy: Any, batch: GroupBatch) -> Tensor:
        """One row a response through transformers' own model, with the attention that it has by default."""
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(self.options["model"], attn_implementation="eager")
        prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
        responses = torch.split(batch.response_ids, batch.lengths.tolist())
        found = []
        model.eval()
        for response, group in zip(responses, batch.group_index.tolist(), strict=True):
            row = torch.cat([prompts[group], response])
            with torch.no_grad():
                logits = model(input_ids=row[None]).logits[0, -len(response) - 1 : -1]
            found.append((logits / batch.temperature).log_softmax(-1).gather(1, response[:, None])[:, 0])
        return torch.cat(found)


globals().update(contracts_for(registry(), options=OPTIONS, bases={("policy", "hf"): HFContract}))


class TestHFPadded(HFContract):
    component = registry().load("policy", "hf")
    options = {**OPTIONS["policy", "hf"], "layout": "padded"}  # noqa: RUF012


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
class TestHFWithLora(HFContract):
    component = registry().load("policy", "hf")
    options = {**OPTIONS["policy", "hf"], "lora": {"r": 4}}  # noqa: RUF012


class TestTinyPolicy(PolicyContract):
    component = TinyPolicy

    def independent_logprobs(self, policy: Any, batch: GroupBatch) -> Tensor:
        """Token by token from the text, with the weights by their names."""
        weights = policy.modules()["policy"].state_dict()
        tokens = {character: number for number, character in enumerate("abcdefghijklmnopqrstuvwxyz .", start=1)}
        found = []
        for group in batch.groups:
            prompt = [tokens[character] for character in group.prompt.plain]
            for text in group.responses:
                response = [*(tokens[character] for character in text), 0]
                for position, token in enumerate(response):
                    before = [29, 29, 29, *prompt, *response[:position]][-3:]
                    window = torch.cat([weights["trunk.embedding.weight"][seen] for seen in before])
                    mean = torch.stack([weights["trunk.embedding.weight"][seen] for seen in prompt]).mean(0)
                    hidden = (
                        weights["trunk.window.weight"] @ window
                        + weights["trunk.window.bias"]
                        + weights["trunk.prompt.weight"] @ mean
                        + weights["trunk.position.weight"][position]
                    ).tanh()
                    logits = weights["vocabulary_head.weight"] @ hidden + weights["vocabulary_head.bias"]
                    found.append((logits / batch.temperature).log_softmax(-1)[token])
        return torch.stack(found)


class TestTinyReward(RewardSourceContract):
    component = TinyReward


def _registry(*registrations: Registration) -> Registry:
    return Registry(list(registrations))


def _registration(name: str, target: type[Any] | str, config: type[Config] = TinyRewardOptions) -> Registration:
    return Registration("reward", name, target, config, "a-stranger")


def test_every_component_gets_the_contract_of_its_role() -> None:
    contracts = contracts_for(
        _registry(_registration("tiny", TinyReward)), options={("reward", "tiny"): {"letter": "e"}}
    )
    assert list(contracts) == ["Test_reward_a_stranger_tiny"]
    contract = contracts["Test_reward_a_stranger_tiny"]
    assert issubclass(contract, RewardSourceContract)
    assert contract().make().config == TinyRewardOptions(letter="e")


def test_only_what_is_asked_for_is_tested() -> None:
    found = _registry(_registration("one", TinyReward), _registration("two", TinyReward))
    for name, expected in (("one", 1), ("a-stranger:two", 1), ("A_Stranger", 2), ("three", 0)):
        assert len(contracts_for(found, only=name)) == expected


def test_what_cannot_be_tested_says_why() -> None:
    class OtherOptions(Config):
        pass

    found = _registry(
        _registration("missing", "alignkit.testing.tiny:Absent"), _registration("mixed up", TinyReward, OtherOptions)
    )
    found.broken.append(Broken("dead", "a-dead-one", "ImportError: gone"))
    contracts = contracts_for(found)
    with pytest.raises(pytest.fail.Exception, match="Absent"):
        contracts["Test_reward_a_stranger_missing"]().test_it_can_be_used()
    with pytest.raises(pytest.fail.Exception, match="takes TinyRewardOptions, but is registered with OtherOptions"):
        contracts["Test_reward_a_stranger_mixed_up"]().test_it_can_be_used()
    with pytest.raises(pytest.fail.Exception, match="a-dead-one: ImportError: gone"):
        contracts["TestPlugin_dead"]().test_it_can_be_used()


def test_options_that_are_missing_skip_the_contract_with_their_names() -> None:
    contracts = contracts_for(registry(), only="alignkit-data")
    with pytest.raises(pytest.skip.Exception, match=r"^alignkit-data:dataset needs -o preferences\.path=VALUE$"):
        contracts["Test_preferences_alignkit_data_dataset"]().test_it_can_be_used()
    model = contracts_for(registry(), only="alignkit-reward:model")
    with pytest.raises(pytest.skip.Exception, match="must be trained first"):
        model["Test_reward_alignkit_reward_model"]().test_it_can_be_used()


def test_contracts_run_from_a_program(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_contracts("bradley-terry") == 0
    assert "passed" in capfd.readouterr().out
    with pytest.raises(InputError, match="no plugin 'bradly-terry' is installed\n  fix: did you mean 'bradley-terry'"):
        run_contracts("bradly-terry")

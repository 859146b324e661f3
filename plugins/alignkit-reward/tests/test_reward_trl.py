"""Losses and gradients of 5 steps equal those of TRL's RewardTrainer; trained folders load in transformers alike."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_reward.model import ModelReward
from alignkit_reward.options import BradleyTerryOptions, ModelOptions
from alignkit_reward.training import BradleyTerry
from alignkit_trl.testing.parity import Steps, pair_rows, parity_steps, trl_steps

from alignkit import Group, InputError, Prompt
from alignkit.testing import near, terms_of_network
from alignkit.testing.material import nudge
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit import Policy

pytest.importorskip("trl")
pytest.importorskip("alignkit_hf.policy")
pytestmark = pytest.mark.filterwarnings("ignore")
PER_STEP = 4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy[Any]:
    from alignkit_hf.options import HFOptions
    from alignkit_hf.policy import HFPolicy

    return HFPolicy(HFOptions(model=str(write_tiny_llama(tmp_path_factory.mktemp("model")))))


def rankings(k: int) -> list[Group]:
    draw = random.Random(k)

    def text(longest: int) -> str:
        return "".join(draw.choice("abcdefgh .") for _ in range(draw.randint(1, longest)))

    return [
        Group(
            Prompt(text=text(20)),
            tuple(text(15) for _ in range(k)),
            ranks=tuple(draw.sample(range(k), k)),
            scores=tuple(round(draw.uniform(-2, 2), 2) for _ in range(k)),
        )
        for _ in range(5 * PER_STEP)
    ]


def both(
    policy: Policy[Any], folder: Path, options: BradleyTerryOptions, *, k: int = 2, **trl: Any
) -> tuple[Steps, Steps]:
    """Our steps and TRL's from the same trunk and head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    optimizer = BradleyTerry(options, policy=policy)
    nudge(optimizer.modules())
    optimizer.save(folder / "reward")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "reward", attention_dropout=0.0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    # TRL reads the score before the padding: it must not take our stop token for padding. And an embedding passes no
    # gradient to its padding token, which is another one for the two.
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(classifier.config.pad_token_id)
    classifier.get_input_embeddings().padding_idx = None
    given = rankings(k)
    batch = policy.encode(given)
    rows: list[dict[str, Any]] = [
        {"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
        for row in pair_rows(batch)
    ]
    if options.margin:
        pairs = [(group.scores or (), pair) for group in given for pair in group.preferred_pairs()]
        for row, (scores, (better, worse)) in zip(rows, pairs, strict=True):
            row["margin"] = options.margin * (scores[better] - scores[worse])  # type: ignore[operator]
    theirs = trl_steps(
        RewardTrainer, RewardConfig, classifier, rows,
        tokenizer=tokenizer, folder=folder / "trl", rows_per_step=PER_STEP * k * (k - 1) // 2, **trl,
    )  # fmt: skip
    assert len(theirs.losses) == 5
    return parity_steps(optimizer, batch, groups_per_step=PER_STEP), theirs


@pytest.mark.parametrize("k", [2, 4])
def test_bradley_terry(policy: Policy[Any], tmp_path: Path, k: int) -> None:
    ours, theirs = both(policy, tmp_path, BradleyTerryOptions(), k=k)
    ours.assert_equal_to(theirs)


def test_bradley_terry_with_margin_and_centring(policy: Policy[Any], tmp_path: Path) -> None:
    options = BradleyTerryOptions(margin=0.5, center_coef=0.05)
    ours, theirs = both(policy, tmp_path, options, center_rewards_coefficient=0.05, remove_unused_columns=False)
    ours.assert_equal_to(theirs)


def test_trained_folder_scores_alike_in_transformers(policy: Policy[Any], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    optimizer = BradleyTerry(policy=policy)
    nudge(optimizer.modules())
    optimizer.save(tmp_path)
    given = rankings(3)[:4]
    batch = policy.encode(given)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    expected = []
    for group, ids in zip(
        batch.group_index.tolist(), torch.split(batch.response_ids, batch.lengths.tolist()), strict=True
    ):
        hidden = classifier.model(torch.cat([prompts[group], ids])[None]).last_hidden_state
        expected.append(float(classifier.score(hidden)[0, -1, 0].detach()))
    source = ModelReward(ModelOptions(model=str(tmp_path)))
    found = [score for row in source.score(given) for score in row]
    terms = terms_of_network(optimizer.modules(), tokens=100)
    assert found == near(expected, terms=terms)
    direct = optimizer.scorer.forward(batch).scores.tolist()
    assert found == near(direct, terms=terms)
    single = [replace(group, responses=(text,), ranks=None, scores=None) for group in given for text in group.responses]
    assert [source.score([group])[0][0] for group in single] == near(found, terms=terms)


def test_a_causal_lm_is_refused(policy: Policy[Any], tmp_path: Path) -> None:
    policy.save(tmp_path)
    with pytest.raises(InputError, match="no scoring head"):
        ModelReward(ModelOptions(model=str(tmp_path)))

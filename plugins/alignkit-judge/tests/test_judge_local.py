"""A local judge: its verdict follows from the logits, alone or in a batch, and nonsense is not a verdict."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_judge.local import LocalJudge, verdict
from alignkit_judge.options import JudgeModel, JudgePreferenceOptions, JudgeRewardOptions
from alignkit_judge.questions import Question
from alignkit_judge.source import JudgeReward, JudgeSource
from alignkit_judge.templates import local_text
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.records import Group, Prompt
from alignkit.testing import PreferenceSourceContract, RewardSourceContract, assert_near, near

if TYPE_CHECKING:
    from pathlib import Path

PAIR = Question("pairwise", "p", ("a", "b"), "c")
THREE = Question("listwise", "p", ("a", "b", "c"), "c")
ANSWERS = "ABC0123456789"
ONE = Question("pointwise", "p", ("a",), "c")


TERMS = 2000
"""Of the sums in a small model with a vocabulary of 512, there and back."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and a tokenizer trained on questions, with single digits."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = Tokenizer(models.BPE())
    split: Any = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator([local_text(question) for question in (PAIR, THREE, ONE)], trainer)
    wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")  # type: ignore[no-untyped-call]
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def groups(count: int = 2) -> list[Group]:
    return [Group(Prompt.of(f"prompt {number}"), ("one " * (number + 1), "two", "three")) for number in range(count)]


def context() -> Context:
    return Context(seed=1, device="cpu")


@pytest.mark.parametrize("protocol", ["pairwise", "listwise", "pointwise"])
def test_the_nonsense_of_a_random_model_is_an_abstention(model: Path, protocol: Any) -> None:
    options = JudgePreferenceOptions(backend="local", model=str(model), protocol=protocol, abstentions="keep")
    source = JudgeSource(options, context())
    assert {group.ranks for group in source.judge(groups())} == {None}
    assert "2 abstained" in source.explain()
    dropped = JudgeSource(JudgePreferenceOptions(backend="local", model=str(model), k=3), context())
    sampler: Any = lambda prompts, k: groups()  # noqa: E731
    sampler.prompts = []
    with pytest.raises(InputError, match="no answer"):
        list(dropped.preferences(sampler))


def test_an_abstaining_judge_gives_no_reward(model: Path) -> None:
    reward = JudgeReward(JudgeRewardOptions(backend="local", model=str(model)), context())
    assert reward.score(groups(2)) == [[None] * 3] * 2
    assert reward.figures() == {
        "judge_abstained": 1.0, "judge_requests": 0.0, "judge_tokens": 0.0, "judge_money": 0.0
    }  # fmt: skip


def test_probabilities_equal_the_models_own(model: Path) -> None:
    """One row, no padding, through transformers' own call; 10 takes two tokens here."""
    judge = LocalJudge(JudgeModel(backend="local", model=str(model), min_mass=0.0), "cpu")
    questions = [ONE, THREE, PAIR, Question("pointwise", "longer prompt", ("x" * 50,), "c")]
    scored = dict(judge.answers([ONE, questions[3]]))
    found = {0: scored[0], 3: scored[1], 1: dict(judge.answers([THREE]))[0], 2: dict(judge.answers([PAIR]))[0]}
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    network: Any = AutoModelForCausalLM.from_pretrained(model).eval()

    def following(text: str) -> dict[str, float]:
        with torch.no_grad():
            logits = network(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double()
        probabilities = logits.softmax(-1)
        numbers = tokenizer.get_vocab()
        both = {label: [numbers[token] for token in (label, f"\u0120{label}") if token in numbers] for label in ANSWERS}
        return {label: float(probabilities[found].sum()) for label, found in both.items()}

    letters = following(local_text(PAIR) + "\nAnswer:")
    mass = letters["A"] + letters["B"] + letters["C"]
    expected = [(letters["A"] + letters["C"] / 2) / mass, (letters["B"] + letters["C"] / 2) / mass]
    assert found[2].values == near(expected, terms=TERMS)
    letters = following(local_text(THREE) + "\nAnswer:")
    mass = sum(letters[label] for label in "ABC")
    assert found[1].values == near([letters[label] / mass for label in "ABC"], terms=TERMS)
    for index in (0, 3):
        text = local_text(questions[index]) + "\nAnswer:"
        digits = following(text)
        ten = digits["1"] * following(text + "1")["0"]
        chances = {score: digits[str(score)] for score in range(1, 10)} | {1: digits["1"] - ten, 10: ten}
        score = sum(value * chance for value, chance in chances.items()) / sum(chances.values())
        assert found[index].values == near([score], terms=TERMS)


def test_out_of_memory_reads_fewer_questions_at_a_time(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = LocalJudge(JudgeModel(backend="local", model=str(model)), "cpu")
    rows = [[5, 6, 7], [8], [9, 10], [11], [12, 13]]
    expected, read = judge._next(rows), judge._pass

    def hungry(some: list[list[int]]) -> torch.Tensor:
        if len(some) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(some)

    monkeypatch.setattr(judge, "_pass", hungry)
    found = judge._next(rows)
    assert_near(found, expected, terms=TERMS, dtype=torch.float32)
    assert caplog.messages == [f"out of memory: now the judge reads {n} questions at a time" for n in (2, 1)]


def test_a_judge_without_its_vocabulary_head_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "judge")
    file = tmp_path / "judge/model.safetensors"
    save_file(
        {name: x for name, x in load_file(file).items() if "lm_head" not in name}, file, metadata={"format": "pt"}
    )
    with pytest.raises(InputError, match=r"missing or left over: lm_head\.weight"):
        LocalJudge(JudgeModel(backend="local", model=str(tmp_path / "judge")), "cpu")


def test_verdicts_from_chances() -> None:
    assert verdict(PAIR, {"A": 0.5, "B": 0.1, "C": 0.2}, 0.5).values == pytest.approx((0.75, 0.25))
    assert verdict(PAIR, {"A": 0.3, "B": 0.1, "C": 0.05}, 0.5).values is None
    assert verdict(PAIR, {"A": 0.0, "B": 0.0, "C": 0.0}, 0.0).values is None
    assert verdict(ONE, {"4": 0.25, "8": 0.75}, 0.5).values == pytest.approx((7.0,))


def test_a_question_longer_than_the_context_is_an_abstention(model: Path) -> None:
    judge = LocalJudge(JudgeModel(backend="local", model=str(model), min_mass=0.0), "cpu")
    long = Question("pairwise", "p", ("a b " * 1000, "b"), "c")
    found = dict(judge.answers([PAIR, long]))
    assert (found[1].values, found[1].reason) == (None, "longer than the judge's context")
    assert found[0].values is not None


def test_reasoning_is_written_before_the_verdict_and_the_same_each_time(model: Path) -> None:
    judge = JudgeModel(backend="local", model=str(model), min_mass=0.0, reply_tokens=5, temperature=1.0)
    questions = [Question("pairwise", "p", ("a", text), "c", reasoning=True) for text in ("b", "bb")]
    together = dict(LocalJudge(judge, "cpu").answers(questions))
    alone = dict(LocalJudge(judge, "cpu").answers(questions[1:]))
    assert together[1].reasoning == alone[0].reasoning
    assert together[1].values == near(alone[0].values, terms=TERMS)
    assert together[0].reasoning != together[1].reasoning


def test_control_tokens_of_the_tokenizer_are_text(model: Path) -> None:
    stop = AutoTokenizer.from_pretrained(model).eos_token_id
    judge = LocalJudge(JudgeModel(backend="local", model=str(model)), "cpu")
    text = judge._prompt(Question("pairwise", "p <end>", ("a<end>", "b"), "c"))
    assert stop not in judge._tokenizer(text)["input_ids"]


def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be loaded"):
        LocalJudge(JudgeModel(backend="local", model=str(tmp_path)), "cpu")


class TestLocalReward(RewardSourceContract):
    component = JudgeReward

    @pytest.fixture(autouse=True)
    def _with_model(self, model: Path) -> None:
        self.__class__.options = {"backend": "local", "model": str(model), "min_mass": 0.0}


class TestLocalPreferences(PreferenceSourceContract):
    component = JudgeSource

    @pytest.fixture(autouse=True)
    def _with_model(self, model: Path) -> None:
        self.__class__.options = {"backend": "local", "model": str(model), "min_mass": 0.0, "k": 3}

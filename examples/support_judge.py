"""A small language model that judges replies of the demo's support desk: `python examples/support_judge.py demo`.

A stand-in for a large model, trained here from scratch in a minute, so that you can try a judge without a download or a
server. It reads exactly the questions that the plugin `judge` asks a local model, with each of its criteria, and learns
to answer them from rated replies of invented agents. Writes an ordinary transformers folder, DEMO/judge.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from alignkit_demo.model import save_untrained_model
from alignkit_demo.world import assess, make_prompt, make_reply
from alignkit_judge.questions import HIGHEST, LOWEST, Question
from alignkit_judge.rubrics import RUBRICS, by_principle, principles_of
from alignkit_judge.templates import ANSWER, local_text
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import alignkit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit_demo.world import Assessment

CONSTITUTION = Path(__file__).with_name("constitution.txt")
ASPECTS = {"polite": "politeness", "solve": "relevance", "brief": "brevity"}
"""A word of each principle in constitution.txt -> the aspect it asks for."""
RATINGS = 24_000
READINGS = 8_000
NOISE = 0.07
"""Standard deviation of a rating, as a share of the scale."""
GARBLED = 0.25
"""Share of replies with words out of place, as barely trained models write them."""
LONGEST = 512
PIECES = Regex(r"\n|[0-9a-f]{16}|[^.?!\n]+?(?=[0-9a-f]{16})|[^.?!\n]+[.?!]?")
"""No token crosses the end of a sentence or a nonce, so that most sentences of this world are one or two tokens."""
TRAINING = {"sft.learning_rate": 4e-3, "sft.minibatch_size": 32, "sft.weight_decay": 0.01}


def ratings(count: int, random: Random) -> Iterator[tuple[str, str]]:
    """(question, score) for replies of any quality, half judged by the rubric `helpful`, half by a principle."""
    principles = principles_of(str(CONSTITUTION))
    for _ in range(count):
        prompt = make_prompt(random)
        reply = make_reply(prompt, random.random(), random)
        if random.random() < GARBLED:
            reply = garbled(reply, random)
        principle = random.choice(principles) if random.random() < 0.5 else ""
        criterion = by_principle(principle) if principle else RUBRICS["helpful"]
        merit = merit_of(assess(prompt.meta["intent"], prompt.meta["product"], reply), principle)
        share = merit + random.gauss(0, NOISE)
        score = min(HIGHEST, max(LOWEST, round(LOWEST + (HIGHEST - LOWEST) * share)))
        yield f"{local_text(Question('pointwise', prompt.plain, (reply,), criterion))}\n{ANSWER}", str(score)


def merit_of(found: Assessment, principle: str) -> float:
    """The worth of a reply, overall or by a principle; 0 to 1 for nearly all replies."""
    if not principle:
        return (found.gold + 2.5) / 7
    aspect = next(name for word, name in ASPECTS.items() if word in principle)
    return float((getattr(found, aspect) + 1 - 0.3 * found.garbled) / 2)


def garbled(text: str, random: Random) -> str:
    """The text with some words removed or moved."""
    words = text.split()
    first, second = sorted(random.sample(range(len(words) + 1), 2))
    middle = words[first:second]
    return " ".join(words[:first] + words[second:] + middle * (random.random() < 0.5)) or text


def tokenizer_of(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer whose tokens may hold several words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", model_max_length=LONGEST
    )


def make_judge(folder: Path, *, ratings_count: int = RATINGS) -> None:
    """A model that first learns whole questions, then to answer them: two runs of `alignkit sft`."""
    rated = list(ratings(ratings_count, Random("judge")))
    with tempfile.TemporaryDirectory() as scratch:
        untrained = Path(scratch) / "untrained"
        save_untrained_model(untrained, tokenizer_of([question for question, _ in rated[:4000]]), seed=0)
        whole = [cut(question, score) for question, score in rated[:READINGS]]
        read = learn(untrained, whole, Path(scratch) / "reading")
        answering = learn(read, rated, Path(scratch) / "answering")
        shutil.copytree(answering, folder, dirs_exist_ok=True)


def cut(question: str, score: str) -> tuple[str, str]:
    """The question split into the part that all questions share, and the rest with the score."""
    start = question.index(" prompt]]\n") + len(" prompt]]\n")
    return question[:start], question[start:] + score


def learn(model: Path, rows: list[tuple[str, str]], out: Path) -> Path:
    """The folder of the model after fine-tuning on (prompt, completion)."""
    data = out.with_suffix(".jsonl")
    lines = (json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in rows)
    data.write_text("".join(lines), encoding="utf-8")
    options = {"policy.model": model, "demonstrations.path": data, **TRAINING}
    return alignkit.run(options=options, stages="sft", out=out).path / "sft"


if __name__ == "__main__":
    make_judge(Path(sys.argv[1] if len(sys.argv) > 1 else "demo") / "judge")

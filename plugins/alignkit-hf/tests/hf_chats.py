"""Byte-level tokenizers with chat templates of the kinds in use, made on the spot; one token per byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from alignkit_hf.encoding import Encoder
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\nTOOLS {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m.get('tool_calls') or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m.get('reasoning_content') %}<think>\n"
    "{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Opens the thoughts in the generation prompt, and renders none where a turn has none."""
CLOSES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% set thoughts = m.get('reasoning_content') or '' %}{% set said = m['content'] %}"
    "{% if '</think>' in said %}{% set thoughts = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<think>\n{{ thoughts }}\n</think>\n\n{{ said }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Opens the thoughts too, and renders empty ones where a turn has none, as Qwen 3 does."""
DROPS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Opens the thoughts and leaves them out of every turn, as DeepSeek R1's."""
EMPTIES = CLOSES.replace("assistant\n<think>\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
"""Opens and closes empty thoughts in the generation prompt."""
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Reads lists of parts alone, as those of models that see."""
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
)
"""Without a generation prompt, and with a space before answers, as Mistral's."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
EOS, START, END, THINK, THOUGHT = range(256, 261)


def chat_tokenizer(template: str | None, *, eos: str = "<|im_end|>", adds_space: bool = False) -> Any:
    """A tokenizer of 261 tokens; `adds_space`: it puts a space before every text, as SentencePiece does."""
    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def chat_encoder(template: str | None, *, stop_ids: Sequence[int] = (END,), **options: Any) -> Encoder:
    made = {name: options.pop(name) for name in ("eos", "adds_space") if name in options}
    given = {"end_id": None, "max_length": 4096, **options}
    return Encoder(chat_tokenizer(template, **made), stop_ids=stop_ids, **given)


def texts(encoder: Encoder, *groups: Group) -> list[tuple[str, list[str]]]:
    """What each group's prompt and responses read as tokens."""
    batch = encoder.encode(groups, "cpu")
    prompts, responses = batch.prompt_ids.tolist(), batch.response_ids.tolist()
    lengths = iter(batch.lengths.tolist())
    read = []
    for group, count in zip(groups, batch.prompt_lengths.tolist(), strict=True):
        own = [[responses.pop(0) for _ in range(next(lengths))] for _ in group.responses]
        ids = [prompts.pop(0) for _ in range(count)]
        read.append((encoder.tokenizer.decode(ids), [encoder.tokenizer.decode(one) for one in own]))
    return read


def chat(*turns: str | dict[str, Any], **meta: Any) -> Prompt:
    """A prompt of turns, texts being the user's and the assistant's in turn."""
    roles = ("user", "assistant")
    messages = [
        {"role": roles[place % 2], "content": turn} if isinstance(turn, str) else turn
        for place, turn in enumerate(turns)
    ]
    return Prompt.of(messages, meta)


def says(*answers: str | dict[str, Any], prompt: Prompt, **fields: Any) -> Group:
    """A group with these answers, as the data plugin makes it."""
    from alignkit_data.messages import group_of

    made = [{"role": "assistant", **one} if isinstance(one, dict) else one for one in answers]
    group = group_of(prompt.content, made, **fields)
    return Group(prompt, group.responses, meta=group.meta, **fields)

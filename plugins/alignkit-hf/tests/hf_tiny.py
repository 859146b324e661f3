"""Tiny transformers models and tokenizers, made on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alignkit.batch import GroupBatch
from alignkit.records import Group, Prompt
from alignkit.testing import assert_near, terms_of_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VOCABULARY = 300
TOKENS = 100
"""More than the sequences of these tests have."""
PAD, BOS, END = 0, 1, 2
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": END,
}
SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": END, "vocab_size": VOCABULARY}
GPT = {**SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**COMMON, "attention_dropout": 0.3}),
    "gpt2": ("gpt2", {**GPT, "attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 8}),
    "opt": ("opt", {**SPECIAL, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "max_position_embeddings": 128, "word_embed_proj_dim": 32, "dropout": 0.3}),
    "mistral": ("mistral", {**COMMON, "sliding_window": 8}),
    "gemma2": ("gemma2", {**COMMON, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**COMMON, "num_hidden_layers": 3, "head_dim": 8, "sliding_window": 8,
                               "query_pre_attn_scalar": 8, "sliding_window_pattern": 3}),
    "cohere": ("cohere", COMMON),
    "granite": ("granite", {**COMMON, "logits_scaling": 3.0}),
    "gpt_oss": ("gpt_oss", {**COMMON, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4,
                            "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "qwen3_moe": ("qwen3_moe", {**COMMON, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16,
                                "num_experts_per_tok": 2}),
    "bloom": ("bloom", {**SPECIAL, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.3}),
    "gpt_neo": ("gpt_neo", {**SPECIAL, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
                            "max_position_embeddings": 128, "attention_types": [[["global", "local"], 1]],
                            "window_size": 8}),
    "falcon": ("falcon", {**SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "alibi": True}),
    "qwen3_next": ("qwen3_next", {**COMMON, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16,
                                  "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16,
                                  "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
                                  "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}),
    "phi3": ("phi3", {**COMMON, "num_key_value_heads": 4, "original_max_position_embeddings": 64,
                      "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                                          "long_factor": [4.0, 8.0, 16.0, 32.0]}}),
    "mamba": ("mamba", {**SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}  # fmt: skip
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PEFT_WARNS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
"""Of plain peft, with this version of transformers."""
AMPLIFIERS = ("mixer.A_log", "mixer.conv1d.weight")
"""Of Mamba. The one is the logarithm of its rates of decay, the other a factor of all four that are multiplied in its
scan: made loud, they amplify every rounding by orders of magnitude."""
TEXT = ("once upon a time there was a little dog who liked to play with the big red ball in the park " * 3).split()


def build_tokenizer(*, pad: str | None = "<pad>", template: str | None = None) -> Any:
    """A byte-level BPE tokenizer of 300 tokens: 0 <pad>, 1 <bos>, 2 <end>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(TEXT)], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token="<bos>", eos_token="<end>"
    )
    tokenizer.chat_template = template
    return tokenizer


def build_model(family: str, *, loud: float = 3.0, **changes: Any) -> Any:
    """A model with random weights that are large enough for every mistake to show."""
    kind, arguments = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = transformers.AutoConfig.for_model(kind, **{**arguments, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and not name.endswith(AMPLIFIERS):
                    parameter.mul_(loud)
                elif parameter.ndim < 2 and "bias" in name:
                    parameter.normal_(std=0.1)
    return model.eval()


def classifier_folder(folder: Path, base: Path, **changes: Any) -> Path:
    """A reward model as another tool saves it, on the tokenizer of `base`."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(base)
    for name, value in {"num_labels": 1, **changes}.items():
        setattr(config, name, value)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, *, seed: int = 0, **options: Any) -> Path:
    """A LoRA adapter as peft saves it, with random weights."""
    kind = transformers.AutoModelForCausalLM
    if options.get("task_type") == "SEQ_CLS":
        kind = transformers.AutoModelForSequenceClassification
    arguments = {"num_labels": 1} if options.get("task_type") == "SEQ_CLS" else {}
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        kind.from_pretrained(base, **arguments),
        peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1 if "lora_" in name else 0.01)
    model.save_pretrained(folder)
    return folder


def token_batch(
    prompts: Sequence[int] = (9, 4, 1),
    responses: Sequence[Sequence[int]] = ((7, 3), (5, 1, 11), (2,)),
    *,
    seed: int = 0,
) -> GroupBatch:
    """Groups of random tokens with these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    groups = [Group(prompt=Prompt(text="x"), responses=("y",) * len(lengths)) for lengths in responses]
    return GroupBatch.from_ids(
        [tokens(count) for count in prompts], [[tokens(count) for count in lengths] for lengths in responses], groups
    )


def assert_equal_figures(model: torch.nn.Module, found: Any, expected: Any, *, scale: float | None = None) -> None:
    """Fails where figures or gradients that the model computed in two ways differ by more than rounding."""
    assert_near(found, expected, terms=terms_of_network(model, tokens=TOKENS), scale=scale)


def plain_logits(model: Any, batch: GroupBatch) -> torch.Tensor:
    """[R, V] logits of response tokens by transformers' own forward of one sequence at a time."""
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    rows = []
    for group, ids in zip(batch.group_index.tolist(), responses, strict=True):
        logits = model(torch.cat((prompts[group], ids))[None], use_cache=False).logits[0].float()
        rows.append(logits[len(prompts[group]) - 1 : -1])
    return torch.cat(rows)


def plain_logprobs(model: Any, batch: GroupBatch) -> torch.Tensor:
    """[R] log-probabilities at the batch's temperature."""
    distribution = (plain_logits(model, batch) / batch.temperature).log_softmax(-1)
    return distribution.gather(1, batch.response_ids[:, None])[:, 0]

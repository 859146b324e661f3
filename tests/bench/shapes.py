"""Sizes of the models that are timed, and their weights: random, from a fixed seed, saved once for all programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers import LlamaForSequenceClassification as LlamaClassifier
from transformers import Qwen2ForSequenceClassification as Qwen2Classifier

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaClassifier),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2Classifier),
}
PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Shape:
    """What the cost of a decoder follows from.

    Attributes:
        stop: probability of the end token at every position, so that sampled responses end; 0 leaves it to chance.
    """

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    context: int
    stop: float = 0.0

    def config(self) -> Any:
        """The transformers config."""
        return FAMILIES[self.family][0](
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


SMALL = Shape("llama", 8192, 256, 704, 6, 4, 4, 1024, stop=1 / 40)
TINY = Shape("qwen2", 1024, 64, 128, 2, 4, 2, 512)
QWEN_05B = Shape("qwen2", 151_936, 896, 4864, 24, 14, 2, 4096)
QWEN_15B = Shape("qwen2", 151_936, 1536, 8960, 28, 12, 2, 4096)
BY_NAME = {"tiny": TINY, "0.5B": QWEN_05B, "1.5B": QWEN_15B}


def save_models(shape: Shape, tokenizer: Any, folder: Path, *, dtype: torch.dtype, device: str = "cpu") -> None:
    """Writes the causal LM to `folder/lm` and a reward model on the same trunk to `folder/rm`."""
    torch.manual_seed(0)
    _, causal_lm, classifier = FAMILIES[shape.family]
    with torch.device(device):
        lm: PreTrainedModel = causal_lm(shape.config())
    _spread(lm)
    if shape.stop:
        _bias_end_token(lm, shape.stop)
    _save(lm.to(dtype), tokenizer, folder / "lm")
    config = shape.config()
    config.num_labels = 1
    with torch.device("meta"):
        reward = classifier(config)
    reward.model = lm.model
    reward.score = torch.nn.Linear(shape.hidden, 1, bias=False, device=device, dtype=dtype)
    torch.nn.init.normal_(reward.score.weight, std=shape.hidden**-0.5)
    _save(reward, tokenizer, folder / "rm")


def _save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _spread(lm: PreTrainedModel) -> None:
    """Twice the usual scale, so that log-probabilities differ from those of a uniform distribution."""
    for parameter in lm.parameters():
        if parameter.dim() == 2:
            parameter.mul_(2.0)


@torch.no_grad()
def _bias_end_token(lm: PreTrainedModel, probability: float) -> None:
    """Makes the end token about this likely everywhere: one hidden dimension is the same at all positions, and the end
    token's (tied) embedding looks at it."""
    embedding = lm.model.embed_tokens.weight
    embedding[:, 0] = embedding.std() * 4
    for layer in lm.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    tokens = torch.randint(3, embedding.shape[0], (4, 64), device=embedding.device)
    output = lm(tokens, output_hidden_states=True)
    constant = output.hidden_states[-1][..., 0].mean()
    rest = output.logits.logsumexp(-1).mean() - output.logits[..., EOS].mean()
    embedding[EOS, 0] += (rest + torch.tensor(probability / (1 - probability)).log()) / constant

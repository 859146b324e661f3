"""The policy `hf`: any transformers causal LM, with full fine-tuning or LoRA."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import transformers

from alignkit import Group, GroupBatch, HasValues, Policy, PolicyOutput, Servable
from alignkit.ops import count_pass, digest_of_tensors, until_it_fits
from alignkit_hf import footprint, loading, probe
from alignkit_hf.adapters import add_adapter, low_rank, merge_adapters
from alignkit_hf.by_side import sample_by_side
from alignkit_hf.chat import Chat
from alignkit_hf.encoding import Encoder, chats_in, try_chats
from alignkit_hf.fallback import sample_with_generate
from alignkit_hf.freezing import freeze, frozen_text
from alignkit_hf.generation import Budget, sample
from alignkit_hf.handover import named_weights, weights_of_adapter
from alignkit_hf.kernels.exact_kl import Head
from alignkit_hf.modeling import PackedModel, Request
from alignkit_hf.options import HFOptions
from alignkit_hf.reference_kl import ReferenceStates
from alignkit_hf.sampling import TokenChooser, before_stop, uniform_streams
from alignkit_hf.saved_tokenizer import saved_tokenizer
from alignkit_hf.scorer import HFScorer
from alignkit_hf.sources import Source
from alignkit_hf.sources import loading as loading_errors
from alignkit_hf.storage import save_policy
from alignkit_hf.weights import check_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from alignkit import Context, Footprint, Held, Load, Prompt, Sampling
    from alignkit_hf.generation import Sampled

logger = logging.getLogger(__name__)
CACHE_BYTES = 512 * 2**20
"""Bytes of keys and values that sampling holds at a time on a CPU; on CUDA, a third of the free memory."""
MAX_ROWS = 512
"""Responses sampled at the same time."""


class HFPolicy(Policy[HFOptions], HasValues, Servable):
    """A causal LM that is sampled, scored and trained.

    Args:
        parts: the module, encoder and tokenizer of a loaded policy; None loads them as the options say.
    """

    counts_flops = True

    def __init__(
        self,
        config: HFOptions | None = None,
        context: Context | None = None,
        *,
        parts: tuple[PackedModel, Encoder, Any] | None = None,
    ) -> None:
        super().__init__(config, context)
        if parts is None:
            parts = self._load()
        self.raw, self.encoder, self.tokenizer = parts
        self._bound: nn.Module = self.raw
        self._adapter_on = True
        self._owner: HFPolicy | None = None
        self._most_rows = 0

    @classmethod
    def load(cls, path: Path, config: HFOptions, context: Context) -> HFPolicy:
        """The policy in a folder written by `save` or transformers."""
        return cls(replace(config, model=str(path), revision=None), context)

    @classmethod
    def try_records(cls, config: HFOptions, records: Iterable[tuple[str, Group]]) -> None:
        """Renders chats as the tokenizer's chat template does."""
        if chats := chats_in(records):
            chat = Chat(loading.tokenizer_of(config), use_template=config.chat_template == "auto")
            try_chats(chats, chat.check)

    def _load(self) -> tuple[PackedModel, Encoder, Any]:
        options = self.config
        device = loading.pick_device(self.context.device)
        with loading_errors("model", options.model):
            source = Source.of(options.model, options.revision)
            tokenizer = loading.load_tokenizer(source.with_tokenizer, trust_remote_code=options.trust_remote_code)
            lm, merged = merge_adapters(loading.load_causal_lm(options, source, device), source, where="model")
        if options.quantize == "none":
            lm.to(device)  # type: ignore[arg-type]
        loading.make_ready(lm)
        unusable = check_vocabulary(tokenizer, loading.rows_of_embedding(lm), where="model")
        encoder = Encoder(
            tokenizer,
            stop_ids=loading.stop_tokens(lm, tokenizer, options.stop_token_ids, options.end_token_id),
            end_id=options.end_token_id,
            max_length=loading.context_length(lm, tokenizer, options.max_length),
            use_template=options.chat_template == "auto",
            unusable=unusable,
        )
        loading.set_generation_defaults(lm, tokenizer, encoder.stop_ids)
        dtype = "bfloat16" if options.weights == "bfloat16" else options.dtype
        path = probe.find_path(lm, layout=options.layout, attention=options.attention)
        model: nn.Module = self._adapted(lm, 0, source.base.revision) if options.lora.r else lm
        packed = PackedModel(model, autocast=loading.autocast_dtype(dtype, device), path=path)
        packed.merged = merged
        freeze(packed, options)
        loading.prepare_for_training(packed, gradient_checkpointing=options.gradient_checkpointing)
        return packed, encoder, tokenizer

    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        """The token batch of text records on the policy's device; see `Encoder.encode`."""
        return self.encoder.encode(groups, self.raw.device)

    def modules(self) -> dict[str, nn.Module]:
        """{"policy": the one module}."""
        return {"policy": self._bound}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        """Runs forward passes through `modules["policy"]`; sampling and saving still use the module inside."""
        self._bound = modules["policy"]

    def forward(
        self,
        batch: GroupBatch,
        *,
        entropy: bool = False,
        hidden: bool = False,
        values: bool = False,
        kl_to: Policy[Any] | None = None,
    ) -> PolicyOutput:
        """Log-probabilities [R] of the response tokens, and the other requested outputs, in one pass.

        Raises:
            ValueError: `kl_to` is not a policy `hf`.
        """
        states = None if kl_to is None else self._states_of(kl_to, batch)
        request = Request(logprobs=True, entropy=entropy, hidden=hidden, values=values, kl_to=states)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._owner is None):
            return PolicyOutput(**self._run(batch, request))

    def _run(self, batch: GroupBatch, request: Request) -> dict[str, Tensor]:
        module = self._owner._bound if self._owner is not None else self._bound
        count_pass({"policy": module}, batch)
        output: dict[str, Tensor] = module(batch, replace(request, adapter=self._adapter_on))
        return output

    @torch.no_grad()
    def _states_of(self, reference: Policy[Any], batch: GroupBatch) -> ReferenceStates:
        """What the exact KL needs from the reference's pass."""
        if not isinstance(reference, HFPolicy):
            raise ValueError(f"the exact KL needs a reference of policy `hf`, found {type(reference).__name__}")
        raw = reference.raw
        if not raw.path.fused_head:
            output = reference._run(batch, Request(logprobs=True, distribution=True))
            return ReferenceStates(distribution=output["distribution"])
        head = raw.vocabulary_head
        own = None if raw is self.raw else Head(head.weight, head.bias, raw.logit_transform)
        return ReferenceStates(hidden=reference._run(batch, Request(hidden=True))["hidden"], head=own)

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        """Samples `n` responses for each prompt, with log-probabilities under the distribution they were drawn from.

        With `temperature` 0 they are log-probabilities under the model's own distribution, at temperature 1.
        """
        ids = self.prompt_ids(prompts, sampling.max_tokens)
        streams = uniform_streams(seed, range(len(prompts)) if places is None else places, n, sampling.max_tokens)
        most, tokens = max(1, min(MAX_ROWS, len(ids) * n)), self._cache_tokens()

        def compute(rows: int) -> Sampled:
            return self._sampled(ids, n, sampling, streams, Budget(tokens=tokens * rows // most, rows=rows))

        sampled = until_it_fits(compute, min(most, self._most_rows or most), self._sample_fewer)
        responses = [sampled.ids[i * n : (i + 1) * n] for i in range(len(prompts))]
        batch = self.batch_of(prompts, ids, responses, sampled.finished, sampling)
        count_pass(self.modules(), batch, learns=False)
        return batch.replace(logprobs=sampled.logprobs.to(self.raw.device))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.encoder.stop_ids

    def named_weights(self, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        return named_weights(self.raw, adapter=self._adapter_on) if merged else weights_of_adapter(self.raw)

    def prompt_ids(self, prompts: Sequence[Prompt], room: int) -> list[list[int]]:
        return self.encoder.prompts_with_room(prompts, room)

    def batch_of(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        responses: Sequence[Sequence[Sequence[int]]],
        finished: Sequence[bool],
        sampling: Sampling,
    ) -> GroupBatch:
        """The batch of sampled responses, with their texts up to a stop string."""
        groups, ends = [], iter(finished)
        for prompt, rows in zip(prompts, responses, strict=True):
            texts = [before_stop(text, sampling.stop) for text in self.encoder.decode(rows)]
            contents = tuple(self.encoder.chat.content(prompt, text) for text in texts)
            groups.append(Group(prompt, contents, finished=tuple(next(ends) for _ in rows), source="policy"))
        temperature, device = sampling.temperature or 1.0, self.raw.device
        return GroupBatch.from_ids(
            prompt_ids, responses, groups, finished=finished, device=device, temperature=temperature
        )

    def _sampled(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, streams: Tensor, budget: Budget
    ) -> Sampled:
        """The responses, within the budget. A prompt with more responses than that stands there several times."""
        beside = next(count for count in range(max(1, min(n, budget.rows)), 0, -1) if n % count == 0)
        repeated = [ids for ids in prompts for _ in range(n // beside)]
        stop_ids, decode = self.encoder.stop_ids, self.encoder.decode
        chooser = TokenChooser(sampling, streams, stop_ids, self.raw.device, prompts=repeated, decode=decode)

        def draw(prompts: Sequence[Sequence[int]], chooser: Any) -> Sampled:
            way = sample if self.raw.path.packed else sample_with_generate
            return way(self.raw, prompts, beside, sampling.max_tokens, chooser, budget)

        return sample_by_side(draw, self.raw, repeated, beside, chooser)

    def _sample_fewer(self, rows: int) -> None:
        self._most_rows = rows
        logger.warning("out of memory: now at most %d responses are sampled at a time", rows)

    def _cache_tokens(self) -> int:
        """For how many tokens keys and values fit into memory."""
        config = self.raw.lm.config.get_text_config()
        width = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * width * head * (4 if self.raw.autocast is None else 2)
        free = CACHE_BYTES
        if self.raw.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.raw.device)[0] // 3
        return int(free // token_bytes)

    def reference(self) -> HFPolicy:
        """This policy as it is now, frozen: the same weights with the adapter off if it is still zero, or a copy.

        A trained adapter is first merged into the weights and replaced by a new one, so that switching it off leads
        back to this policy and not to the model below it. 4-bit weights are copied instead, because merging would round
        the adapter away.
        """
        shares = self.raw.has_adapter and self.config.reference != "copy"
        if shares and self.raw.adapter_is_trained and self.config.quantize == "none":
            self.raw.merged.append(low_rank(self.raw.model))
            base: Any = self.raw.model
            merged, revision = base.merge_and_unload(), base.peft_config[base.active_adapter].revision
            self.raw.model = self._adapted(merged, len(self.raw.merged), revision)
            freeze(self.raw, self.config)
        if shares and not self.raw.adapter_is_trained:
            reference = HFPolicy(self.config, self.context, parts=(self.raw, self.encoder, self.tokenizer))
            reference._owner = self
            reference._adapter_on = False
            return reference
        frozen = copy.deepcopy(self.raw)
        frozen.value_head = None
        frozen.requires_grad_(False)
        return HFPolicy(self.config, self.context, parts=(frozen, self.encoder, self.tokenizer))

    def explain(self) -> str:
        """The layout, and why it is not packed."""
        path, name = self.raw.path, type(self.raw.lm).__name__
        frozen = f"; {frozen_text(self.raw)}" if self.config.freeze_layers or self.config.train_last else ""
        note = f"; {self.encoder.note}" if self.encoder.note else ""
        if path.packed:
            accuracy = f" ({path.accuracy})" if path.accuracy else ""
            return f"{name} runs in the packed layout{accuracy}{frozen}{note}"
        return f"{name} runs in the padded layout: {path.reason or 'the options ask for it'}{frozen}{note}"

    def digest(self) -> str:
        """sha256 of the weights in use (without an adapter that is off) and of how the model computes with them."""
        raw, off = self.raw, () if self._adapter_on else ("lora_", "value_head")
        tensors = {key: t for key, t in raw.state_dict().items() if not any(part in key for part in off)}
        config = {key: value for key, value in raw.lm.config.to_dict().items() if key != "_name_or_path"}
        how = f"{type(raw.lm)} {config} {raw.path} {raw.lm.config._attn_implementation} {raw.autocast}"
        said = f"{transformers.__version__} {how} {digest_of_tensors(tensors)}"
        return hashlib.sha256(said.encode()).hexdigest()

    def _adapted(self, lm: nn.Module, number: int, revision: str | None) -> nn.Module:
        """The model with a new adapter, the `number`-th: each has random factors of its own."""
        return add_adapter(lm, self.config.lora, seed=self.context.seed + number, revision=revision)

    def add_value_head(self) -> None:
        """Adds `value_head` to the module; it starts at zero."""
        self.raw.add_value_head()

    def add_value_branch(self, layers: int) -> None:
        """Adds `value_head` to the module: copies of the last layers, and a head that starts at zero."""
        self.raw.add_value_head(layers)

    def scorer(self) -> HFScorer:
        """A new scorer with a copy of this trunk; with LoRA the copy has its own adapter."""
        return HFScorer.from_policy(self.raw, self.config, self.encoder, self.tokenizer, seed=self.context.seed)

    @classmethod
    def load_scorer(cls, path: Path, context: Context, *, append_end: bool | None = None) -> HFScorer:
        """The scorer in a folder with a one-label sequence classifier; see `HFScorer.load`."""
        return HFScorer.load(path, context, append_end=append_end)

    @classmethod
    def footprint(cls, config: HFOptions | None, held: Held, load: Load) -> Footprint:
        """The memory of the policy, or of a scorer with its trunk; see `alignkit_hf.footprint`."""
        return footprint.footprint(config or HFOptions(model=held.folder), held, load)

    @classmethod
    def try_records_of_scorer(cls, path: Path, records: Iterable[tuple[str, Group]]) -> None:
        """Renders chats as the scorer's tokenizer does."""
        HFScorer.try_records(path, records)

    def save(self, path: Path) -> None:
        """Writes a folder that transformers can load, with the adapter merged and also alone in `path/adapter`."""
        save_policy(self.raw, saved_tokenizer(self.tokenizer, self.encoder), path)

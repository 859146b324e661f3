"""Reward models and critics: a trunk with one scalar head on every token.

Stored as a standard sequence classifier with one label. Unlike in transformers' own forward, the score is read at the
index of the last response token, never by looking for padding.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from alignkit import InputError, Scorer, ScorerOutput, may_be_model
from alignkit.ops import count_pass, num_processes
from alignkit_hf import loading, probe
from alignkit_hf.adapters import add_adapter, merge_adapters, tensors_of_adapter
from alignkit_hf.chat import Chat
from alignkit_hf.encoding import Encoder, chats_in, try_chats
from alignkit_hf.freezing import freeze, frozen_parameters
from alignkit_hf.modeling import PackedModel, Request
from alignkit_hf.saved_tokenizer import padding_tokenizer, scoring_tokenizer
from alignkit_hf.sources import Source
from alignkit_hf.sources import loading as loading_errors
from alignkit_hf.storage import merged_model, save_model, whole_model
from alignkit_hf.weights import check_vocabulary, load_weights
from alignkit_hf.whole import WholeEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from alignkit import Context, Group, GroupBatch
    from alignkit_hf.options import HFOptions

HEAD = "score"
ENCODING_FILE = "alignkit_encoding.json"


class HFScorer(Scorer):
    """A sequence classifier with one label that scores every token of packed groups."""

    def __init__(self, model: PackedModel, encoder: Encoder, tokenizer: Any) -> None:
        self.raw = model
        self.encoder = encoder
        self.tokenizer = tokenizer
        self._bound: nn.Module = model

    @classmethod
    def from_policy(
        cls, raw: PackedModel, options: HFOptions, encoder: Encoder, tokenizer: Any, *, seed: int = 0
    ) -> HFScorer:
        """A copy of a policy's trunk with a head that starts at zero.

        Args:
            raw: the policy's model.
            seed: of a new adapter's random factors.

        Raises:
            InputError: transformers has no sequence classifier for this kind of model.
        """
        lm = merged_model(raw)
        if lm is raw.lm:
            # Parameters frozen in both are shared. With several processes they aren't: sharded weights need one owner.
            shared = frozen_parameters(raw, options) if num_processes() == 1 else []
            lm = copy.deepcopy(lm, {id(parameter): parameter for parameter in shared})
        config = copy.deepcopy(lm.config)
        config.num_labels = 1
        with loading_errors("model", options.model), torch.device("meta"):
            classifier = transformers.AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        if not isinstance(getattr(classifier, HEAD, None), nn.Linear):
            raise InputError(
                f"{type(classifier).__name__} has no head called 'score'", where="policy.model", fix="use another model"
            )
        hidden_size = classifier.score.weight.shape[1]
        setattr(classifier, classifier.base_model_prefix, lm.base_model)
        classifier.score = nn.Linear(hidden_size, 1, bias=classifier.score.bias is not None, device=raw.device)
        nn.init.zeros_(classifier.score.weight)
        if classifier.score.bias is not None:
            nn.init.zeros_(classifier.score.bias)
        tokenizer = padding_tokenizer(tokenizer, encoder, raw.vocabulary_size)
        if tokenizer.pad_token_id >= raw.vocabulary_size:
            classifier.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
            # Padding is never read: its row is the same in every run, not a random one.
            nn.init.zeros_(classifier.get_input_embeddings().weight[raw.vocabulary_size :])
        classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        model: nn.Module = classifier
        if options.lora.r:
            model = add_adapter(classifier, options.lora, seed=seed, head=HEAD, where="policy.lora")
        else:
            model.requires_grad_(True)
        packed = PackedModel(model, autocast=raw.autocast, path=raw.path)
        freeze(packed, options, where="policy.")
        loading.prepare_for_training(packed, gradient_checkpointing=options.gradient_checkpointing)
        return cls(packed, encoder, tokenizer)

    @classmethod
    def load(cls, path: Path, context: Context, *, append_end: bool | None = None) -> HFScorer:
        """The scorer in a folder or hub repository, which may be an adapter.

        Raises:
            InputError: there is none, or another kind of model.
        """
        name = path.as_posix()
        if not may_be_model(name):
            raise _no_model(name)
        device = loading.pick_device(context.device)
        with loading_errors("model", name):
            source = Source.of(name)
            classifier = _load_classifier(source)
            tokenizer = loading.load_tokenizer(source.with_tokenizer)
            given = _record_of(source)
        loading.make_ready(classifier)
        unusable = check_vocabulary(tokenizer, loading.rows_of_embedding(classifier), where="model")
        encoder = _encoder(classifier, tokenizer, given, unusable, append_end)
        classifier.to(device)
        found = probe.find_path(classifier, layout="auto", attention="auto")
        autocast = loading.autocast_dtype("auto", device)
        return cls(PackedModel(classifier, autocast=autocast, path=found), encoder, tokenizer)

    @staticmethod
    def try_records(path: Path, records: Iterable[tuple[str, Group]]) -> None:
        """Renders chats as the scorer in a folder does. Raises InputError with the place of one that it can't."""
        if chats := chats_in(records):
            with loading_errors("model", path.as_posix()):
                source = Source.of(path.as_posix())
                tokenizer = loading.load_tokenizer(source.with_tokenizer)
                given = _record_of(source)
            chat = Chat(tokenizer, use_template=(given or {}).get("use_template", True))
            whole = given is None and chat.use_template
            try_chats(chats, chat.conversations if whole else chat.answers)

    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        """The token batch of text records, on the scorer's device; see `Encoder.encode`."""
        return self.encoder.encode(groups, self.raw.device)

    def modules(self) -> dict[str, nn.Module]:
        """{"scorer": the module}."""
        return {"scorer": self._bound}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        """Runs forward passes through `modules["scorer"]`."""
        self._bound = modules["scorer"]

    def forward(self, batch: GroupBatch) -> ScorerOutput:
        """Values [R] and scores [S] of all responses in one pass."""
        count_pass(self.modules(), batch)
        return ScorerOutput(**self._bound(batch, Request(values=True, scores=True)))

    def rescale(self, mean: float, std: float) -> None:
        """Rescales scores through the head's weight and bias, adding a bias if needed. Don't `save` afterwards.

        Raises:
            NotImplementedError: the head is wrapped in an adapter.
        """
        head = self.raw.score_head
        if not isinstance(head, nn.Linear):
            raise NotImplementedError("the head is wrapped in an adapter: rescale before adding the adapter")
        with torch.no_grad():
            shift = torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias
            head.bias = nn.Parameter((shift - mean) / std)
            head.weight /= std

    def save(self, path: Path) -> None:
        """Writes a folder that AutoModelForSequenceClassification and its tokenizer can load, adapter merged."""
        encoder = self.encoder
        if isinstance(encoder, WholeEncoder):
            save_model(whole_model(self.raw), self.tokenizer, path)
            return
        save_model(whole_model(self.raw), scoring_tokenizer(self.tokenizer, encoder), path)
        record = {
            "stop_token_ids": encoder.stop_ids,
            "end_token_id": encoder.end_id,
            "max_length": encoder.max_length,
            "use_template": encoder.use_template,
        }
        (path / ENCODING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _record_of(source: Source) -> Mapping[str, Any] | None:
    """How the scorer encodes; None for one of another tool."""
    return (source.adapters or (source.base,))[-1].record(ENCODING_FILE)


def _load_classifier(source: Source) -> Any:
    """The sequence classifier. Its head may be in an adapter, and a vocabulary head beside it is not used."""
    config = source.base.record("config.json")
    if config is None:
        raise _no_model(source.base.name)
    heads = {tensor for place in source.adapters for tensor in tensors_of_adapter(place) if tensor.startswith(HEAD)}
    if heads:
        arguments = {"num_labels": 1}
    else:
        _check_classifier(source.base.name, config)
        arguments = {}
    classifier = load_weights(
        transformers.AutoModelForSequenceClassification,
        source.base,
        where="model",
        fresh=heads,
        dtype=torch.float32,
        **arguments,
    )
    classifier, _ = merge_adapters(classifier, source, where="model")
    if not isinstance(getattr(classifier, HEAD, None), nn.Linear):
        raise InputError(
            f"{type(classifier).__name__} has no head called {HEAD!r}", where="model", fix="use another model"
        )
    return classifier


def _no_model(name: str) -> InputError:
    return InputError(f"{name} holds no model", where="model", fix="give the folder of a trained reward model")


def _check_classifier(name: str, config: Mapping[str, Any]) -> None:
    kinds = config.get("architectures") or ["unknown"]
    if not any("SequenceClassification" in kind for kind in kinds):
        raise InputError(
            f"{name} is a {kinds[0]}, which has no scoring head",
            where="model",
            fix="train a reward model from it, or give a one-label sequence classifier",
        )
    labels = config.get("id2label")
    if (config.get("num_labels") or (2 if labels is None else len(labels))) != 1:
        raise InputError(f"{name} has more than one label", where="model", fix="give a classifier with one label")


def _encoder(
    classifier: Any,
    tokenizer: Any,
    given: Mapping[str, Any] | None,
    unusable: frozenset[int],
    append_end: bool | None,
) -> Encoder:
    """As `save` recorded it; for a model of another tool, as its own tokenizer and chat template have it."""
    record = given or {}
    arguments: dict[str, Any] = {
        "stop_ids": loading.stop_tokens(classifier, tokenizer, tuple(record.get("stop_token_ids", ()))),
        "end_id": record.get("end_token_id"),
        "max_length": loading.context_length(classifier, tokenizer, record.get("max_length", 0)),
        "use_template": record.get("use_template", True),
        "unusable": unusable,
    }
    if given is None:
        padding_id = classifier.config.get_text_config().pad_token_id
        return WholeEncoder(tokenizer, padding_id=padding_id, append_end=bool(append_end), **arguments)
    if append_end is not None:
        raise InputError(
            f"{ENCODING_FILE} of this reward model says how it ends", where="append_end", fix="leave it out"
        )
    return Encoder(tokenizer, **arguments)

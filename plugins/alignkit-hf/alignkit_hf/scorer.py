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

from alignkit import InputError, Scorer, ScorerOutput
from alignkit.ops import num_processes
from alignkit_hf import loading, probe
from alignkit_hf.encoding import Encoder
from alignkit_hf.freezing import freeze, frozen_parameters
from alignkit_hf.modeling import PackedModel, Request
from alignkit_hf.storage import merged_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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
    def from_policy(cls, raw: PackedModel, options: HFOptions, encoder: Encoder, tokenizer: Any) -> HFScorer:
        """A copy of a policy's trunk with a head that starts at zero.

        Args:
            raw: the policy's model.

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
        with loading.loading("model", options.model), torch.device("meta"):
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
        classifier.config.pad_token_id = _padding_id(encoder, tokenizer, config)
        model: nn.Module = classifier
        if options.lora.r:
            model = loading.add_adapter(classifier, options.lora, head=HEAD, where="policy.lora")
        else:
            model.requires_grad_(True)
        packed = PackedModel(model, autocast=raw.autocast, path=raw.path)
        freeze(packed, options, where="policy.")
        loading.prepare_for_training(packed, gradient_checkpointing=options.gradient_checkpointing)
        return cls(packed, encoder, tokenizer)

    @classmethod
    def load(cls, path: Path, context: Context) -> HFScorer:
        """The scorer of a folder.

        Raises:
            InputError: the folder is missing or holds another kind of model.
        """
        _check_classifier(path)
        device = loading.pick_device(context.device)
        with loading.loading(str(path), str(path)):
            classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True
            )
        loading.switch_dropout_off(classifier)
        loading.let_every_token_learn(classifier)
        tokenizer = loading.load_tokenizer(str(path))
        given = _read_encoding(path)
        encoder = Encoder(
            tokenizer,
            stop_ids=loading.stop_tokens(classifier, tokenizer, tuple(given.get("stop_token_ids", ()))),
            end_id=given.get("end_token_id"),
            max_length=loading.context_length(classifier, tokenizer, given.get("max_length", 0)),
            use_template=given.get("use_template", True),
        )
        classifier.to(device)
        found = probe.find_path(classifier, layout="auto", attention="auto")
        autocast = loading.autocast_dtype("auto", device)
        return cls(PackedModel(classifier, autocast=autocast, path=found), encoder, tokenizer)

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
        path.mkdir(parents=True, exist_ok=True)
        merged_model(self.raw).save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        encoder = self.encoder
        record = {
            "stop_token_ids": encoder.stop_ids,
            "end_token_id": encoder.end_id,
            "max_length": encoder.max_length,
            "use_template": encoder.use_template,
        }
        (path / ENCODING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_classifier(path: Path) -> None:
    file = path / "config.json"
    if not file.is_file():
        raise InputError(f"{path} holds no model", where="model", fix="give the folder of a trained reward model")
    config = json.loads(file.read_text(encoding="utf-8"))
    kinds = config.get("architectures") or ["unknown"]
    if not any("SequenceClassification" in kind for kind in kinds):
        raise InputError(
            f"{path} is a {kinds[0]}, which has no scoring head",
            where="model",
            fix="train a reward model from it, or give a one-label sequence classifier",
        )
    labels = config.get("id2label")
    if (config.get("num_labels") or (2 if labels is None else len(labels))) != 1:
        raise InputError(f"{path} has more than one label", where="model", fix="give a classifier with one label")


def _read_encoding(path: Path) -> dict[str, Any]:
    file = path / ENCODING_FILE
    if not file.is_file():
        return {}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _padding_id(encoder: Encoder, tokenizer: Any, config: Any) -> int:
    """A token that no finished response ends with, because transformers reads the last token that differs from it."""
    known = (
        tokenizer.pad_token_id,
        config.get_text_config().pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
    )
    candidates = [token for token in known if token is not None and token not in (encoder.end_id, *encoder.stop_ids)]
    return int(candidates[0]) if candidates else next(token for token in range(10**6) if token not in encoder.stop_ids)

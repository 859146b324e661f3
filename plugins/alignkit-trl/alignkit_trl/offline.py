"""TRL's SFTTrainer, DPOTrainer and KTOTrainer, on the tokens that the policy encodes.

A TRL row is one response or one pair, so a ranking of K gives all its strictly ordered pairs. A step has the rows of
`minibatch_size` groups: the same groups as in our own algorithms if every group gives the same number of rows,
otherwise the average number.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from alignkit import Feed, ForeignTrainer, InputError
from alignkit_trl.bridge import FixedRowOrder, RowOrder, common_arguments, hf_policy, own_tokenizer, run_trainer
from alignkit_trl.options import TRLDPOOptions, TRLKTOOptions, TRLOptions, TRLSFTOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit_hf.modeling import PackedModel

    from alignkit import Group, GroupBatch, Sampling, TrainResult
    from alignkit_trl.bridge import OnStep

OptionsT = TypeVar("OptionsT", bound=TRLOptions)
Row = dict[str, Any]


class OfflineTrainer(ForeignTrainer[OptionsT]):
    """Base: a subclass defines the trainer and the rows of a group."""

    trainer: ClassVar[str]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.hf = hf_policy(self.policy)

    @property
    def packed(self) -> PackedModel:
        """The model that is trained."""
        return self.hf.raw

    @abstractmethod
    def rows(self, group: Group, prompt: list[int], responses: list[list[int]]) -> list[Row]:
        """TRL's rows of a group, from the tokens of its prompt and responses."""

    def order(self, rows: list[list[Row]], rows_per_pass: int, seed: int) -> RowOrder:
        """The training order of the rows, which are given by group."""
        return RowOrder([len(own) for own in rows], seed)

    def tokenizer(self) -> Any:
        """The tokenizer that TRL pads with."""
        return own_tokenizer(self.hf)

    def run(
        self, groups: Sequence[Group], *, sampling: Sampling, folder: Path, seed: int, on_step: OnStep
    ) -> TrainResult:
        from datasets import Dataset

        options = self.config
        batch = self.hf.encode(groups)
        by_group = [self.rows(*of_group) for of_group in zip(batch.groups, *_tokens(batch), strict=True)]
        by_group = [rows for rows in by_group if rows]
        if not by_group:
            raise InputError(f"the data gives {self.trainer} nothing to learn from", fix="see docs/reference/data.md")
        rows = [row for own in by_group for row in own]
        rows_per_step = round(len(rows) / len(by_group) * min(options.minibatch_size, len(by_group)))
        steps = math.ceil(len(rows) / rows_per_step) * options.n_epochs
        arguments = common_arguments(options, self.packed, folder, seed, rows_per_step=rows_per_step)
        order = self.order(by_group, arguments["per_device_train_batch_size"], seed)
        result = run_trainer(
            self.trainer,
            self.packed,
            arguments | {"num_train_epochs": options.n_epochs, "warmup_steps": round(options.warmup * steps)},
            config=options.trl_config,
            on_step=on_step,
            overrides={
                "_get_train_sampler": lambda *_, **__: order,
                "_prepare_dataset": lambda _, dataset, *__, **___: dataset,
            },
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer(),
        )
        return replace(result, tokens=options.n_epochs * batch.num_tokens)


class TRLSFT(OfflineTrainer[TRLSFTOptions]):
    """Supervised fine-tuning."""

    consumes = Feed.DEMONSTRATIONS
    trainer = "SFTTrainer"

    def rows(self, group: Group, prompt: list[int], responses: list[list[int]]) -> list[Row]:
        return [{"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids} for ids in responses]


class TRLDPO(OfflineTrainer[TRLDPOOptions]):
    """Direct preference optimisation, and the other losses of TRL's DPOTrainer."""

    consumes = Feed.RANKINGS
    uses_reference = True
    trainer = "DPOTrainer"

    def rows(self, group: Group, prompt: list[int], responses: list[list[int]]) -> list[Row]:
        return [
            {"prompt_ids": prompt, "chosen_ids": responses[better], "rejected_ids": responses[worse]}
            for better, worse in group.preferred_pairs()
            if responses[better] != responses[worse]
        ]


class TRLKTO(OfflineTrainer[TRLKTOOptions]):
    """Kahneman-Tversky optimisation."""

    consumes = Feed.LABELS
    uses_reference = True
    trainer = "KTOTrainer"

    def rows(self, group: Group, prompt: list[int], responses: list[list[int]]) -> list[Row]:
        labels = group.labels
        if labels is None and group.ranks is not None and len(set(group.ranks)) > 1:
            labels = tuple(rank == min(group.ranks) for rank in group.ranks)
        return [
            {"prompt_ids": prompt, "completion_ids": ids, "label": label}
            for ids, label in zip(responses, labels or (), strict=bool(labels))
        ]

    def order(self, rows: list[list[Row]], rows_per_pass: int, seed: int) -> RowOrder:
        """One order for all epochs: for the KL, each row has the response of its neighbour in the same pass."""
        order = FixedRowOrder([len(own) for own in rows], seed)
        flat = [row for own in rows for row in own]
        taken = [flat[index] for index in order]
        for start in range(0, len(taken), rows_per_pass):
            part = taken[start : start + rows_per_pass]
            for row, neighbour in zip(part, [part[-1], *part[:-1]], strict=True):
                row["KL_completion_ids"] = neighbour["completion_ids"]
        return order


def _tokens(batch: GroupBatch) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of each group's prompt, and of each group's responses."""
    prompts = [ids.tolist() for ids in torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())]
    responses = iter(torch.split(batch.response_ids, batch.lengths.tolist()))
    return prompts, [[next(responses).tolist() for _ in group.responses] for group in batch.groups]

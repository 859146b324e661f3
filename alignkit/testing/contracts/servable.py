"""The contract of policies that another engine can sample (`Servable`), part of `PolicyContract`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from alignkit.options import Sampling
from alignkit.samplers import Servable
from alignkit.testing.material import nudge, prompts

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ROOM = 12


class ServableContract:
    """Checks of `named_weights`, `prompt_ids` and `batch_of`. A policy that only samples itself has none to check."""

    def _servable(self) -> Any:
        policy = self.make()  # type: ignore[attr-defined]
        return policy if isinstance(policy, Servable) else None

    def test_its_weights_are_those_that_it_saves(self, tmp_path: Path) -> None:
        if (policy := self._servable()) is None:
            return
        nudge(policy.modules())
        policy.save(tmp_path)
        saved: dict[str, Tensor] = {}
        for file in tmp_path.glob("*.safetensors"):
            saved |= load_file(file)
        given = list(policy.named_weights())
        names = [name for name, _ in given]
        assert names == [name for name, _ in policy.named_weights()], "the order changes"
        assert set(names) == {name for name in saved if not name.startswith("value_head")}
        for name, tensor in given:
            assert torch.allclose(tensor.cpu(), saved[name], rtol=1e-5, atol=1e-6), name

    def test_no_tensor_is_handed_out_twice(self) -> None:
        if (policy := self._servable()) is None:
            return
        weights = dict(policy.named_weights())
        assert len({tensor.data_ptr() for tensor in weights.values()}) == len(weights)

    def test_token_ids_come_back_as_the_texts_that_were_sampled(self) -> None:
        if (policy := self._servable()) is None:
            return
        sampling = Sampling(max_tokens=ROOM, temperature=0.8)
        batch = policy.generate(prompts(), n=2, sampling=sampling, seed=0)
        ids = policy.prompt_ids(prompts(), ROOM)
        assert [token for row in ids for token in row] == batch.prompt_ids.tolist()
        flat = [part.tolist() for part in torch.split(batch.response_ids, batch.lengths.tolist())]
        rows = [flat[2 * number : 2 * number + 2] for number in range(len(prompts()))]
        again = policy.batch_of(prompts(), ids, rows, batch.finished.tolist(), sampling)
        assert again.groups == batch.groups
        assert again.temperature == batch.temperature
        assert torch.equal(again.response_ids, batch.response_ids)
        assert [row[-1] in policy.stop_ids for row in flat] == batch.finished.tolist()

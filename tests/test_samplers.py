"""The role Sampler: who is asked for rollouts, with which weights, and what becomes of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import alignkit
from alignkit import Config, Context, Group, InputError, Policy, Prompt, Sampling, train
from alignkit.ops import mismatch_weights
from alignkit.options import RolloutOptions
from alignkit.plugins import Registration, Registry, registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import recipe_of
from alignkit.runs.plan import plan
from alignkit.samplers import OwnSampler, Sampler
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.testing.tiny_hf import write_tiny_llama
from alignkit.training.checkpoint import batch_from_tensors, batch_to_tensors
from alignkit.training.feeds import RolloutFeed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignkit import GroupBatch

PROMPTS = [Prompt(text=text) for text in ("a", "b", "c", "d")]


@dataclass(frozen=True, kw_only=True)
class ApartOptions(Config):
    """An engine of its own, whose log-probabilities are off."""

    by: float = 0.5
    """Nats per token."""
    url: str = ""
    """Where it is."""

    noise = frozenset({"url"})


class Apart(Sampler[ApartOptions]):
    """Samples with the policy, but gives other log-probabilities, in an engine's way."""

    def __init__(self, config: ApartOptions | None = None, context: Context | None = None) -> None:
        super().__init__(config, context)
        self.synced: list[int] = []
        self.closed = 0

    def sync(self, policy: Policy[Any], version: int) -> None:
        self.policy = policy
        self.synced.append(version)

    def generate(self, prompts: Any, **how: Any) -> GroupBatch:
        batch = self.policy.generate(prompts, **how)
        assert batch.logprobs is not None
        theirs = batch.logprobs - self.config.by
        return batch.replace(logprobs=None, sampler_logprobs=theirs, version=self.synced[-1])

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        weights, figures = mismatch_weights(batch, "token-truncate", 10.0)
        return batch.replace(advantages=None if batch.advantages is None else batch.advantages * weights), figures

    def close(self) -> None:
        self.closed += 1


def feed(sampler: Sampler[Any] | None = None) -> RolloutFeed:
    options = RolloutOptions(iterations=3, batch_size=4, group_size=2)
    sampling = Sampling(max_tokens=6)
    return RolloutFeed(PROMPTS, TinyPolicy(), TinyReward(), sampling=sampling, options=options, seed=2, sampler=sampler)


def test_the_policy_itself_samples_unless_another_one_is_named() -> None:
    plain, named = feed().batch(1), feed(OwnSampler()).batch(1)
    assert plain.groups == named.groups
    assert plain.logprobs is not None and named.logprobs is not None
    assert torch.equal(plain.logprobs, named.logprobs)
    assert (plain.version, plain.sampler_logprobs) == (1, None)


def test_a_batch_of_the_policy_itself_is_not_corrected() -> None:
    one = feed()
    batch = one.batch(0)
    assert one.corrected(batch) == (batch, {})


def test_weights_go_over_before_every_batch() -> None:
    sampler = Apart()
    one = feed(sampler)
    assert [one.batch(index).version for index in range(3)] == [0, 1, 2]
    assert sampler.synced == [0, 1, 2]


def test_advantages_are_weighed_and_the_figures_logged(tmp_path: Path) -> None:
    algorithm: Any = registry().load("optimizer", "reinforce")
    seen: list[GroupBatch] = []

    class Watched(algorithm):  # type: ignore[misc]
        def prepare(self, batch: GroupBatch) -> GroupBatch:
            seen.append(super().prepare(batch))
            return seen[-1]

        def loss(self, batch: GroupBatch) -> Any:
            seen.append(batch)
            return super().loss(batch)

    config = algorithm.Config(iterations=1, batch_size=4, group_size=2, minibatch_size=4, kl_coef=0.0)
    optimizer = Watched(config, policy=TinyPolicy(), reward=TinyReward())
    sampler = Apart()
    found = train(optimizer, PROMPTS, sampling=Sampling(max_tokens=6), sampler=sampler, out=tmp_path, progress=False)
    prepared, stepped = seen
    assert prepared.advantages is not None and stepped.advantages is not None and prepared.logprobs is not None
    ratio = torch.tensor(0.5).exp()
    assert torch.allclose(stepped.advantages.sort().values, (prepared.advantages * ratio).sort().values, rtol=1e-4)
    assert bool(prepared.advantages.any())
    assert found.steps == 1
    log = (tmp_path / "metrics.jsonl").read_text()
    assert '"sampler_kl": 0.14' in log, "exp(0.5) - 1 - 0.5 = 0.1487"
    assert sampler.closed == 0, "who made it closes it"


def test_a_checkpoint_keeps_what_the_sampler_said() -> None:
    batch = feed(Apart()).batch(2)
    again = batch_from_tensors(batch_to_tensors(batch), torch.device("cpu"))
    assert again.version == 2
    assert batch.sampler_logprobs is not None and again.sampler_logprobs is not None
    assert torch.equal(again.sampler_logprobs, batch.sampler_logprobs)


@pytest.fixture
def with_apart(monkeypatch: pytest.MonkeyPatch) -> Registry:
    added = [
        Registration("sampler", "apart", Apart, ApartOptions, "tests"),
        Registration("policy", "tiny", TinyPolicy, TinyPolicy.Config, "tests"),
        Registration("reward", "tiny", TinyReward, TinyReward.Config, "tests"),
    ]
    found = Registry([*registry().registrations, *added])
    monkeypatch.setattr("alignkit.recipe.reading.registry", lambda: found)
    return found


def test_a_run_asks_its_sampler_everywhere_and_closes_it(
    with_apart: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Apart] = []
    keep = Apart.__init__
    monkeypatch.setattr(Apart, "__init__", lambda self, *given: (keep(self, *given), made.append(self))[0])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{letter} one"}}\n' for letter in "abcdefgh"))
    recipe = {
        "policy": {"plugin": "tiny"},
        "prompts": {"path": str(prompts)},
        "reward": {"plugin": "tiny"},
        "optimizer": {"plugin": "reinforce", "iterations": 2, "batch_size": 2, "minibatch_size": 2},
        "sampling": {"max_tokens": 4},
    }
    run = alignkit.run(recipe, sampler="apart", out=tmp_path / "run", progress=False)
    (sampler,) = made
    assert sampler.synced == [0, 1, 0, 0], "two batches, and both policies of the evaluation"
    assert sampler.closed == 1
    assert all(record["sampler_kl"] > 0.1 for record in run.metrics)
    assert 'plugin = "apart"' in (tmp_path / "run" / "recipe.toml").read_text()


def test_where_a_sampler_is_does_not_change_the_recipe(with_apart: Registry) -> None:
    def digest(**options: Any) -> str:
        recipe = recipe_of({"sampler": {"plugin": "apart", **options}}, flags={}, options={})
        return resolve(recipe, with_apart).digest

    assert digest() == digest(url="http://elsewhere") != digest(by=1.0)


def test_algorithms_that_sample_nothing_or_by_themselves_take_no_sampler(with_apart: Registry, tmp_path: Path) -> None:
    dpo: Any = registry().load("optimizer", "dpo")
    with pytest.raises(InputError, match="sampler: DPO samples nothing during training"):
        train(dpo(policy=TinyPolicy()), [Group(PROMPTS[0], ("a", "b"), ranks=(0, 1))], sampler=OwnSampler())
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n')
    tables = {"policy": {"plugin": "tiny"}, "prompts": {"path": str(file)}, "reward": {"plugin": "tiny"}}
    recipe = {**tables, "optimizer": {"plugin": "trl-grpo"}, "sampler": {"plugin": "apart"}}
    with pytest.raises(InputError, match="sampler: trl-grpo samples in a loop of its own"):
        plan(resolve(recipe_of(recipe, flags={}, options={}), with_apart))


def test_no_sampler_of_that_name(with_apart: Registry) -> None:
    with pytest.raises(InputError, match=r"no sampler plugin 'appart'[\s\S]*did you mean 'apart'"):
        resolve(recipe_of({}, flags={"sampler": "appart"}, options={}), with_apart)


SPLIT = """
import sys
from pathlib import Path
from alignkit import OwnSampler, Prompt, Sampling, build_component, make_context
from alignkit.ops.distributed import process_index, start_processes
from alignkit.testing import TinyReward
from alignkit.training.engine import train
from alignkit.training.feeds import RolloutFeed

start_processes()
folder, lora = Path(sys.argv[1]), {"lora": {"r": 2}} if sys.argv[2] == "lora" else {}
policy, plain = (
    build_component("policy", {"plugin": "hf", "model": str(folder / "m"), "dtype": "float32", **more}, make_context())
    for more in (lora, {})
)
before = dict(plain.named_weights())


class Watching(OwnSampler):
    def sync(self, policy, version):
        super().sync(policy, version)
        given = dict(policy.named_weights())
        assert given.keys() == before.keys() and {type(tensor).__name__ for tensor in given.values()} == {"Tensor"}
        moved = max(float((given[name] - before[name]).abs().max()) for name in given)
        (folder / f"{sys.argv[2]}-{version}-{process_index()}").write_text(str(moved))


class Varied(TinyReward):
    def score(self, groups):
        return [[float(sum(map(ord, text)) % 7) for text in group.responses] for group in groups]


options = {"iterations": 2, "batch_size": 4, "group_size": 2, "minibatch_size": 4, "learning_rate": 1e-2}
optimizer = build_component("optimizer", {"plugin": "grpo", **options}, policy=policy, reward=Varied())
feed = RolloutFeed(
    [Prompt(text=text) for text in ("a", "bb", "c", "dd")], policy, Varied(),
    sampling=Sampling(max_tokens=6), options=optimizer.config, seed=1, sampler=Watching(),
)
train(optimizer, feed, folder=folder / sys.argv[2], seed=1, shard=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_split_weights_are_handed_out_whole_in_every_process(kind: str, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m")
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(tmp_path), kind]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    moved = [[float((tmp_path / f"{kind}-{v}-{rank}").read_text()) for rank in range(2)] for v in range(2)]
    assert moved[0] == [0.0, 0.0]
    assert moved[1][0] == moved[1][1] > 1e-3

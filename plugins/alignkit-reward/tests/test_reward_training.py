"""Reward models: a known order is learnt, the margin comes from the annotators' scores, a folder scores as before."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest
import torch
from alignkit_reward.model import ModelReward
from alignkit_reward.options import BradleyTerryOptions, InfoNCEOptions, ModelOptions, PlackettLuceOptions
from alignkit_reward.stored import StoredReward
from alignkit_reward.training import BradleyTerry, InfoNCE, PlackettLuce

from alignkit import Context, Group, InputError, PluginError, Prompt
from alignkit.ops.ranking_losses import Rankings, pair_accuracy
from alignkit.plugins import Registration, registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe
from alignkit.testing import ELEMENTARY, TinyOptions, TinyPolicy, near, terms_of_network
from alignkit.testing.material import groups_for, nudge

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignkit import GroupBatch, Optimizer

TERMS = terms_of_network(TinyPolicy().modules(), tokens=100)
TRAINERS: list[Callable[..., Any]] = [
    lambda policy: BradleyTerry(BradleyTerryOptions(center_coef=0.01), policy=policy),
    lambda policy: InfoNCE(InfoNCEOptions(), policy=policy),
    lambda policy: PlackettLuce(PlackettLuceOptions(), policy=policy),
]


@pytest.fixture(autouse=True)
def _tiny_policy_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Registration("policy", "tiny", TinyPolicy, TinyOptions, "alignkit-test")
    monkeypatch.setattr(registry(), "registrations", [*registry().registrations, tiny])


def rankings_by_last_letters(count: int, seed: int) -> list[Group]:
    """Responses of four letters; the true order is by how many of the last two are an "a"."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        texts = tuple("".join(draw.choice("ab") for _ in range(4)) for _ in range(4))
        found.append(Group(Prompt(text="rank"), texts, ranks=tuple(2 - text[2:].count("a") for text in texts)))
    return found


def train(optimizer: Optimizer[Any], batch: GroupBatch, steps: int) -> None:
    adam = torch.optim.AdamW([p for m in optimizer.modules().values() for p in m.parameters()], lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        loss, _ = optimizer.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()


@pytest.mark.parametrize("make", TRAINERS)
def test_a_ranking_counts_as_much_as_its_weight(make: Callable[..., Any]) -> None:
    rankings = [group for group in rankings_by_last_letters(8, seed=0) if group.preferred_pairs()][:2]

    def loss(*weights: float) -> float:
        optimizer = make(TinyPolicy())
        train(optimizer, optimizer.prepare(optimizer.policy.encode(rankings)), steps=3)
        given = [replace(group, meta={"weight": w}) for group, w in zip(rankings, weights, strict=True)]
        with torch.no_grad():
            return float(optimizer.loss(optimizer.prepare(optimizer.policy.encode(given)))[0])

    assert loss(0.25, 2) == near(0.25 * loss(1, 0) + 2 * loss(0, 1), terms=TERMS)
    assert loss(1, 0) != pytest.approx(loss(0, 1), rel=1e-3)


@pytest.mark.parametrize("make", TRAINERS)
def test_a_known_order_is_learnt(make: Callable[..., Any]) -> None:
    optimizer = make(TinyPolicy())
    train(optimizer, optimizer.prepare(optimizer.policy.encode(rankings_by_last_letters(64, seed=0))), steps=60)
    held_out = optimizer.prepare(optimizer.policy.encode(rankings_by_last_letters(64, seed=1)))
    with torch.no_grad():
        scores = optimizer.scorer.forward(held_out).scores
    accuracy = held_out.group_mean(pair_accuracy(scores, Rankings.of_batch(held_out)))
    assert accuracy > 0.97


@pytest.mark.parametrize("make", TRAINERS)
def test_metrics_by_hand(make: Callable[..., Any]) -> None:
    optimizer = make(TinyPolicy())
    record = replace(groups_for(optimizer.consumes)[1], ranks=(1, 0, 1))
    batch = optimizer.prepare(optimizer.policy.encode([record]))
    nudge(optimizer.modules())
    first, best, last = optimizer.scorer.forward(batch).scores.tolist()
    _, metrics = optimizer.loss(batch)
    assert {name: float(value) for name, value in metrics.items()} == near(
        {
            "accuracy": ((best > first) + (best > last)) / 2,
            "margin": best - (first + last) / 2,
            "score": (first + best + last) / 3,
        },
        terms=TERMS,
    )


def test_margin_is_the_gap_of_the_annotators_scores() -> None:
    optimizer = BradleyTerry(BradleyTerryOptions(margin=0.5), policy=TinyPolicy())
    record = Group(Prompt(text="p"), ("a", "bb"), ranks=(1, 0), scores=(1.0, 4.0))
    loss, _ = optimizer.loss(optimizer.prepare(optimizer.policy.encode([record])))
    # The head is zero at the start: -log sigmoid(0 - 0.5 * 3).
    assert loss.item() == near(math.log(1 + math.exp(1.5)), terms=2 * ELEMENTARY)
    with pytest.raises(InputError, match="some responses have none"):
        optimizer.prepare(optimizer.policy.encode([replace(record, scores=(1.0, None))]))
    with pytest.raises(InputError, match="some responses have none"):
        optimizer.prepare(optimizer.policy.encode([record, replace(record, scores=None)]))


def test_smoothing_and_temperature_reach_the_loss() -> None:
    record = Group(Prompt(text="p"), ("a", "bb"), ranks=(1, 0))

    def loss_and_gap(optimizer: Any) -> tuple[float, float]:
        nudge(optimizer.modules())
        batch = optimizer.policy.encode([record])
        worse, better = optimizer.scorer.forward(batch).scores.tolist()
        return optimizer.loss(batch)[0].item(), better - worse

    loss, gap = loss_and_gap(BradleyTerry(BradleyTerryOptions(label_smoothing=0.2), policy=TinyPolicy()))
    assert loss == near(0.8 * math.log(1 + math.exp(-gap)) + 0.2 * math.log(1 + math.exp(gap)), terms=3 * ELEMENTARY)
    loss, gap = loss_and_gap(InfoNCE(InfoNCEOptions(temperature=0.25), policy=TinyPolicy()))
    assert loss == near(math.log(1 + math.exp(-gap / 0.25)), terms=3 * ELEMENTARY)
    assert abs(gap) > 0.01


def test_tied_groups_are_dropped_and_counted() -> None:
    optimizer = PlackettLuce(policy=TinyPolicy())
    given = groups_for(optimizer.consumes)
    kept = optimizer.prepare(optimizer.policy.encode([replace(given[0], ranks=(0, 0)), given[1]]))
    assert [group.prompt for group in kept.groups] == [given[1].prompt]
    assert optimizer.batch_metrics == {"groups_without_order": 1.0}


@pytest.fixture
def trained(tmp_path: Path) -> tuple[BradleyTerry, Path]:
    optimizer = BradleyTerry(policy=TinyPolicy())
    nudge(optimizer.modules())
    optimizer.save(tmp_path / "reward")
    return optimizer, tmp_path / "reward"


def test_a_saved_model_scores_as_before(trained: tuple[BradleyTerry, Path]) -> None:
    optimizer, folder = trained
    given = groups_for(optimizer.consumes)
    expected = optimizer.scorer.forward(optimizer.policy.encode(given)).scores.tolist()
    found = ModelReward(ModelOptions(model=str(folder)), Context()).score(given)
    assert [score for row in found for score in row] == near(expected, terms=TERMS)
    assert json.loads((folder / "alignkit.json").read_text()) == {
        "policy": "tiny", "mean": 0.0, "std": 1.0, "loss": "pairwise",
    }  # fmt: skip


def test_token_budget_never_changes_a_score(trained: tuple[BradleyTerry, Path]) -> None:
    given = groups_for(trained[0].consumes)
    whole, pieces = (ModelReward(ModelOptions(model=str(trained[1]), max_tokens=size)) for size in (10_000, 1))
    for one, other in zip(whole.score(given), pieces.score(given), strict=True):
        assert one == near(other, terms=TERMS)


def test_calibration_fixes_the_scale_for_good(trained: tuple[BradleyTerry, Path]) -> None:
    given = groups_for(trained[0].consumes)
    options = ModelOptions(model=str(trained[1]))
    raw = [score for row in ModelReward(options).score(given) for score in row]
    source = ModelReward(options)
    source.calibrate(given)
    for again in (source, ModelReward(options)):
        scores = torch.tensor([score for row in again.score(given) for score in row], dtype=torch.float64)
        assert scores.mean().item() == near(0, terms=TERMS, scale=1.0)
        assert scores.square().mean().item() == near(1, terms=TERMS)
        assert scores.argsort().tolist() == torch.tensor(raw).argsort().tolist()
    unchanged = ModelReward(replace(options, normalise=False))
    unchanged.calibrate(given[:1])
    assert [score for row in unchanged.score(given) for score in row] == near(raw, terms=TERMS)
    assert ModelReward(options).score(given) == source.score(given)


def test_equal_scores_calibrate_without_dividing_by_zero(tmp_path: Path) -> None:
    BradleyTerry(policy=TinyPolicy()).save(tmp_path)
    source = ModelReward(ModelOptions(model=str(tmp_path)))
    source.calibrate(groups_for(BradleyTerry.consumes))
    assert source.score([Group(Prompt(text="p"), ("a",))]) == [[0.0]]


def test_critic_is_a_trainable_copy(trained: tuple[BradleyTerry, Path]) -> None:
    source = ModelReward(ModelOptions(model=str(trained[1])))
    given = groups_for(trained[0].consumes)
    before = source.score(given)
    critic = source.start_critic()
    assert all(p.requires_grad for module in critic.modules().values() for p in module.parameters())
    nudge(critic.modules())
    assert source.score(given) == before


def test_folders_that_are_no_reward_model_are_refused(tmp_path: Path) -> None:
    TinyPolicy().save(tmp_path)
    (tmp_path / "alignkit.json").write_text('{"policy": "tiny"}')
    with pytest.raises(InputError, match="policy, not a scorer"):
        ModelReward(ModelOptions(model=str(tmp_path)))
    with pytest.raises(InputError, match="no reward model yet"):
        ModelReward()
    for damaged in ("{", '{"std": 0}', '{"other": 1}'):
        (tmp_path / "alignkit.json").write_text(damaged)
        with pytest.raises(InputError, match=r"alignkit\.json"):
            ModelReward(ModelOptions(model=str(tmp_path)))
    (tmp_path / "alignkit.json").write_text('{"policy": "absent"}')
    with pytest.raises(InputError, match="no policy plugin 'absent'"):
        ModelReward(ModelOptions(model=str(tmp_path)))
    with pytest.raises(InputError, match="there is no folder"):
        ModelOptions(model=str(tmp_path / "absent")).check()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[reward]\nloss = "infonce"\ntrain.n_epochs = 2\n')
    given = resolve(load_recipe(recipe, flags={}, overrides=[f"reward.model={tmp_path}"]), registry())
    assert given.config("reward") == ModelOptions(model=str(tmp_path))
    assert [notice.partition(": ")[2] for notice in given.notices] == [
        "ignored, because -o sets what supersedes it"
    ] * 2
    kept = resolve(load_recipe(recipe, flags={}, overrides=["reward.model="]), registry())
    assert kept.config("reward").train == {"n_epochs": 2}
    for idle in ({"train": {"n_epochs": 2}}, {"loss": "infonce"}):
        with pytest.raises(InputError, match=f"{next(iter(idle))}: has no effect with reward.model"):
            ModelOptions(model=str(tmp_path), **idle)  # type: ignore[arg-type]


def test_scores_that_are_not_finite_name_the_group(trained: tuple[BradleyTerry, Path]) -> None:
    optimizer, folder = trained
    with torch.no_grad():
        next(iter(optimizer.modules().values())).trunk.position.weight[3:] = torch.nan  # type: ignore[union-attr, index, operator]
    optimizer.save(folder)
    source = ModelReward(ModelOptions(model=str(folder)))
    short, long = Group(Prompt(text="p"), ("a",)), Group(Prompt(text="p"), ("abcdef",))
    assert source.score([short])
    with pytest.raises(PluginError, match="group 1"):
        source.score([short, long])


@pytest.mark.parametrize(
    ("loss", "optimizer"), [("pairwise", "bradley-terry"), ("infonce", "infonce"), ("plackett-luce", "plackett-luce")]
)
def test_the_loss_names_the_optimizer(loss: Any, optimizer: str) -> None:
    assert ModelOptions(loss=loss, train={"n_epochs": 3}).training() == {"plugin": optimizer, "n_epochs": 3}
    assert ModelOptions(model="org/name").training() is None


def test_the_scale_of_a_model_on_the_hub_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--own--reward"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("a" * 40)
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "alignkit.json").write_text(json.dumps({"policy": "tiny", "mean": 3.0, "std": 2.0}))
    assert StoredReward.read(Path("own/reward")) == StoredReward(policy="tiny", mean=3.0, std=2.0)
    assert StoredReward.read(Path("own/other")) == StoredReward()


def test_where_a_model_of_another_tool_ends_needs_a_model() -> None:
    with pytest.raises(InputError, match="append_end"):
        ModelOptions(append_end=True).check()

"""Recipes with their flags, and the manifests of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import tomli_w
import torch

from alignkit.errors import CheckpointError, InputError
from alignkit.plugins import registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe, recipe_of
from alignkit.training import checkpoint as checkpoints
from tests.fuzz.mutations import VALUES, as_json, mutated, mutated_bytes

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from alignkit.recipe.recipe import Recipe

PAIRS = Path(__file__).with_name("pairs.jsonl")
RECIPES: tuple[dict[str, Any], ...] = (
    {
        "run": {"seed": 3, "metrics": [{"plugin": "tensorboard"}]},
        "policy": {"plugin": "hf", "model": "org/model", "lora": {"r": 8}},
        "preferences": {"plugin": "dataset", "path": str(PAIRS), "columns": {"id": "key"}, "template": "{prompt}"},
        "optimizer": {"plugin": "dpo", "beta": 0.1, "for": {"grpo": {"learning_rate": 0.1}}},
        "sampling": {"temperature": 1.0, "stop": ["x"]},
    },
    {
        "policy": {"model": "org/model"},
        "prompts": {"path": str(PAIRS)},
        "preferences": {"plugin": "mix", "sources": [{"plugin": "dataset", "path": str(PAIRS)}] * 2},
        "reward": {"plugin": "judge", "model": "m", "base_url": "http://127.0.0.1:1/v1", "judges": []},
        "optimizer": {"plugin": "ppo", "stop": {"plateau": 3}, "kl_coef": 0.05},
        "eval": {"rewards": {"gold": {"plugin": "rules"}}, "count": 4},
        "candidates": {"count": 4, "policies": [{"plugin": "hf", "model": "org/other"}]},
    },
)
_MANIFESTS: dict[Path, bytes] = {}
KEYS = ("optimizer.beta", "policy.model", "reward", "run.seed", "a b", "", "sampling.stop", "eval.rewards.x.plugin")


def recipes(draw: random.Random, folder: Path) -> str:
    """A recipe, as a file or as tables from Python, with overrides: checked, or refused with what, where and how."""
    tables = draw.choice(RECIPES)
    changed = mutated(draw, tables)
    tables = changed if isinstance(changed, dict) and draw.random() < 0.9 else tables
    given = draw.choice(VALUES)
    if draw.random() < 0.5:
        options = {draw.choice(KEYS): given} if draw.random() < 0.3 else {}
        return read_settings(lambda: recipe_of(tables, flags={}, options=options))
    path = folder / "recipe.toml"
    path.write_bytes(_toml(draw, tables))
    overrides = [f"{draw.choice(KEYS)}={given}"] if draw.random() < 0.3 else []
    flags = {"optimizer": draw.choice(("", "", "grpo", "x"))}
    return read_settings(lambda: load_recipe(path, flags=flags, overrides=overrides))


def read_settings(load: Callable[[], Recipe]) -> str:
    """Loads a recipe and checks it with the plugins that are installed, without a network."""
    try:
        with patch("alignkit_data.options.hub_rows", side_effect=InputError("no network", where="path", fix="none")):
            resolved = resolve(load(), registry())
    except InputError as error:
        assert str(error)
        return "refused"
    resolved.to_toml().encode()
    assert len(resolved.digest) == 64
    return "read"


def _toml(draw: random.Random, tables: Any) -> bytes:
    try:
        content = tomli_w.dumps(tables).encode()
    except Exception:  # TOML has no such values
        content = tomli_w.dumps(RECIPES[0]).encode()
    return mutated_bytes(draw, content) if draw.random() < 0.5 else content


def manifests(draw: random.Random, folder: Path) -> str:
    """The newer of two checkpoints has a mutated manifest: it is skipped with its reason."""
    files = json.loads(two_checkpoints(folder)[2])
    content = as_json(mutated(draw, files)).encode() if draw.random() < 0.6 else json.dumps(files).encode()
    return read_manifest(mutated_bytes(draw, content) if draw.random() < 0.5 else content, folder)


def read_manifest(content: bytes, folder: Path) -> str:
    """The newer of two checkpoints has a manifest with this content."""
    older, newer, good = two_checkpoints(folder)
    (newer / checkpoints.MANIFEST).write_bytes(content)
    try:
        chosen, problems = checkpoints.newest_checkpoint(folder)
    finally:
        (newer / checkpoints.MANIFEST).write_bytes(good)
    if chosen == older:
        assert len(problems) == 1
        assert problems[0].startswith(newer.name)
        return "refused"
    assert json.loads(content)["files"] == json.loads(good)["files"]
    return "read"


def two_checkpoints(folder: Path) -> tuple[Path, Path, bytes]:
    """The older, the newer, and the manifest of the newer."""
    paths = folder / "step-00000001", folder / "step-00000002"
    if folder not in _MANIFESTS:
        for step in (1, 2):
            tensors = {"modules": {"w": torch.ones(2)}, "adam": {}}
            checkpoints.save_checkpoint(folder, step, tensors=tensors, state={"step": step}, keep=2)
        _MANIFESTS[folder] = (paths[1] / checkpoints.MANIFEST).read_bytes()
    return *paths, _MANIFESTS[folder]


def only_manifests(draw: random.Random, folder: Path) -> str:
    """Without another checkpoint, a manifest that does not verify is an error that says so."""
    content = as_json(draw.choice(VALUES)).encode()
    path = folder / "step-00000001"
    path.mkdir(parents=True, exist_ok=True)
    (path / checkpoints.MANIFEST).write_bytes(content)
    try:
        checkpoints.newest_checkpoint(folder)
    except CheckpointError as error:
        assert path.name in str(error)
        return "refused"
    raise AssertionError("a checkpoint without files")

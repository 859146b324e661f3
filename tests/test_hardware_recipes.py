"""Every recipe in examples/ resolves; those for real hardware are weighed by models of the published sizes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
import transformers

from alignkit.runs.plan import plan
from tests.bench.hardware import MACHINES, RECIPES, REWARD_MODEL, ROWS, SHAPES, Machine, resolved_recipe, write_config

ROOT = Path(__file__).parent.parent
PARAMETERS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
}
"""Of the published models; a tied head counts once."""
STAGES = {
    "16gb-qlora-dpo": ["preferences", "align", "eval"],
    "16gb-ppo": ["preferences", "reward", "align", "eval"],
    "80gb-grpo": ["align", "eval"],
    "8gpu-fsdp2-vllm": ["align", "eval"],
    "two-nodes-dpo": ["preferences", "align", "eval"],
}


def test_every_recipe_is_weighed_and_every_row_is_one() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} == {machine.recipe for machine in MACHINES} == STAGES.keys()
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{machine.recipe}]({machine.recipe}.toml)" in readme for machine in MACHINES)
    assert "computed" in readme


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.recipe)
def test_a_recipe_resolves_and_means_these_stages(machine: Machine, tmp_path: Path) -> None:
    resolved = resolved_recipe(machine.path, tmp_path)
    assert [stage.name for stage in plan(resolved)] == STAGES[machine.recipe]
    assert not resolved.notices
    batch, processes = resolved.config("optimizer").minibatch_size, machine.processes
    assert batch % processes == 0, "some processes would have less to do"


@pytest.mark.parametrize("model", SHAPES)
def test_configs_are_those_of_the_published_models(model: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(write_config(tmp_path, model))
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    assert sum(parameter.numel() for parameter in made.parameters()) == PARAMETERS[model]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_every_other_example_resolves(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit.commands import read_recipe

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # a demo that lies in the repository has no judge
    for table, row in ROWS.items():
        (tmp_path / f"{table}.jsonl").write_text(row, encoding="utf-8")
    overrides = [f"policy.model={write_config(tmp_path, REWARD_MODEL)}"]
    for table, options in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if table in ROWS and "path" in options:
            overrides.append(f"{table}.path={tmp_path}/{table}.jsonl")
        overrides += [f"{table}.split="] if "split" in options else []
    overrides.append(f'eval.prompts={{plugin="dataset", path="{tmp_path}/prompts.jsonl"}}')
    assert plan(read_recipe(path, flags={}, overrides=overrides))[0].name

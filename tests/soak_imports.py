"""What the server of tests/soak.py does once for all of its processes: imports, and a model's first load."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path

import transformers

from alignkit.plugins import registry
from alignkit.recipe.describe import describe
from alignkit.testing.tiny_hf import write_tiny_llama

MODULES = (
    *("alignkit.cli.app", "alignkit.runs.stages", "accelerate", "jinja2", "rich.progress"),
    *("alignkit_data", "alignkit_report.run_report", "alignkit_hf.policy", "alignkit_hf.scorer"),
    *("alignkit_reward.training", "alignkit_reward.model"),
)

for name in MODULES:
    import_module(name)
for plugin in registry().registrations:
    if plugin.distribution in ("alignkit-hf", "alignkit-data", "alignkit-ppo", "alignkit-dpo", "alignkit-grpo"):
        plugin.load()
        describe(plugin.config)
with tempfile.TemporaryDirectory() as folder:
    write_tiny_llama(Path(folder))
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder)

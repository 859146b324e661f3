"""Local files in place of what the recipes in examples/ fetch from the hub."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
MODEL = f"policy.model={SHARED / 'stories260K-hf'}"
LOCAL = {
    "stories-ppo": [MODEL],
    "hh-reward": [MODEL, f"preferences.path={SHARED / 'hh_harmless_test_conv.jsonl.gz'}", "preferences.split="],
    "qa-rankings": [
        MODEL, "preferences.plugin=dataset", f"preferences.path={SHARED / 'qa_feedback_k4_human.jsonl.gz'}",
    ],
}  # fmt: skip
"""Recipe -> overrides."""
FEW_STORIES = [
    "prompts.args.count=24", "eval.prompts.args.count=6", "sampling.max_tokens=80", "reward.train.n_epochs=1",
    "optimizer.for.ppo.iterations=1", "optimizer.for.ppo.batch_size=4",
]  # fmt: skip
FEW_PAIRS = ["preferences.limit=24", "reward.train.n_epochs=1"]
FEW = {"stories-ppo": FEW_STORIES, "hh-reward": FEW_PAIRS, "qa-rankings": FEW_PAIRS}
"""Recipe -> overrides that make it take seconds."""

"""Tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), run by its own harness on a saved policy.

Where the saved tokenizer has a chat template, prompts go through it. Intervals come from the harness's standard errors.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from alignkit import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Policy

NORMAL = 1.959964
BATCH = 8


def run_tasks(policy: Policy[Any], tasks: Sequence[str]) -> dict[str, Any]:
    """`task/NAME/METRIC` -> figure with its interval, for every metric that has a standard error.

    Raises:
        InputError: lm-eval has no such task.
    """
    from lm_eval import simple_evaluate

    with TemporaryDirectory() as folder:
        policy.save(Path(folder))
        template = (Path(folder) / "chat_template.jinja").exists()
        weights = (weight for module in policy.modules().values() for weight in module.parameters())
        try:
            found = simple_evaluate(
                "hf",
                {"pretrained": folder},
                tasks=list(tasks),
                batch_size=BATCH,
                device=str(next(weights).device),
                apply_chat_template=template,
                log_samples=False,
            )
        except KeyError as error:
            raise InputError(str(error.args[0]), where="eval.tasks", fix="choose from `lm-eval ls tasks`") from error
    return figures_of_tasks(found)


def figures_of_tasks(found: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of what `lm_eval.simple_evaluate` returns."""
    figures: dict[str, Any] = {}
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            metric, _, how = name.partition(",")
            error = metrics.get(f"{metric}_stderr,{how}")
            if isinstance(value, float) and isinstance(error, float):
                low, high = value - NORMAL * error, value + NORMAL * error
                bounds = {"value": value, "low": low, "high": high}
                told = {name: round(float(bound), 4) for name, bound in bounds.items()}
                label = metric if how == "none" else f"{metric} ({how})"
                figures[f"task/{task}/{label}"] = {**told, "n": found["n-samples"][task]["effective"]}
    return figures

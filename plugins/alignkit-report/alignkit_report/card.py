"""The model card of each model that a run produced: README.md in its folder, in the form that model hubs read."""

from __future__ import annotations

import hashlib
import shlex
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import visible, write_synced
from alignkit_report.measures import flat
from alignkit_report.page import TEMPLATES, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Run

MARK = "<!-- written by alignkit; remove this line to keep your changes -->"
NAME = "README.md"
DATA = {"sft": ("demonstrations.jsonl",), "reward": ("preferences.jsonl",), "policy": ("preferences.jsonl",)}
"""Files of a run that each of its models learned from."""
STAGES = {"sft": "SFT", "reward": "reward training", "policy": "alignment"}


def write_report(run: Run) -> str:
    """Writes a card beside each model; returns their paths, for people.

    A card without the marking line is somebody's own and stays.
    """
    written = []
    for folder in DATA:
        path = run.path / folder / NAME
        own = path.exists() and MARK not in path.read_text(encoding="utf-8")
        if (run.path / folder / "config.json").exists() and not own:
            write_synced(path, card(run, folder))
            written.append(str(path))
    return ", ".join(written)


def card(run: Run, folder: str) -> str:
    """The card of the model in one of a run's folders: sft, reward or policy."""
    recipe = (run.path / "recipe.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(recipe)
    base, state = str(tables.get("policy", {}).get("model", "")), run.state
    figures = run.stages.get("eval", {}) if folder == "policy" else {}
    licence = _licence(base)
    return render(
        TEMPLATES / "card.md",
        header=_header(tables, folder, base, licence),
        mark=MARK,
        title=f"{run.path.resolve().name}: {folder}",
        opening=_opening(tables, folder, base),
        stage=STAGES[folder],
        on=figures.get("on", "prompts of unknown history"),
        figures=_figures(figures),
        known=_known(run, folder),
        data=_table(("file", "records", "SHA-256"), _data(run, folder)),
        limits=_limits(run, figures, tables),
        licence=licence,
        command=_shortened(shlex.join(state.get("argv", ()))),
        versions=", ".join(f"{name} {version}" for name, version in state.get("versions", {}).items()),
        recipe=_shortened(recipe).strip(),
    )


def _header(tables: Mapping[str, Any], folder: str, base: str, licence: str) -> str:
    from huggingface_hub import ModelCardData

    trained = "text-classification" if folder == "reward" else "text-generation"
    tags = ["alignkit", *([_plugin(tables, "optimizer")] if folder == "policy" else [folder])]
    public = base if base and not Path(base).expanduser().exists() else None
    known: str = ModelCardData(
        base_model=public, library_name="transformers", pipeline_tag=trained, tags=tags, license=licence or None
    ).to_yaml()
    return known.strip()


def _licence(base: str) -> str:
    """What the header of the base's own card says."""
    import yaml

    path = Path(base).expanduser() / NAME
    lines = path.read_text(encoding="utf-8").splitlines() if base and path.is_file() else []
    if not lines or lines[0] != "---":
        return ""
    said = yaml.safe_load("\n".join(takewhile(lambda line: line != "---", lines[1:])))
    return str(said.get("license", "")) if isinstance(said, dict) else ""


def _opening(tables: Mapping[str, Any], folder: str, base: str) -> str:
    name = _shortened(base) or _plugin(tables, "policy")
    if folder == "sft":
        return f"`{name}`, fine-tuned on demonstrations with alignkit."
    if folder == "reward":
        loss = tables.get("reward", {}).get("train", {}).get("plugin") or tables.get("reward", {}).get("loss", "")
        return f"A reward model from `{name}`, trained on preferences ({loss or 'alignkit'}): higher is better."
    return f"`{name}`, aligned by `{_plugin(tables, 'optimizer')}` with alignkit."


def _plugin(tables: Mapping[str, Any], role: str) -> str:
    return str(tables.get(role, {}).get("plugin", "")) or role


def _figures(figures: Mapping[str, Any]) -> str:
    """A table: figure, start, this model; then win rates over the start."""
    before, after = (flat(figures.get(name, {})) for name in ("start", "policy"))
    rows = [(name, _said(before.get(name, "")), _said(value)) for name, value in after.items()]
    wins = [(name.replace("/", " by "), "", _said(said)) for name, said in figures.items() if name.startswith("win_")]
    return _table(("figure", "start", "this model"), rows + wins)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        number, low, high = (f"{value[name] + 0.0:.3g}" for name in ("value", "low", "high"))
        return f"{number} [{low}, {high}], n = {value['n']:.0f}"
    return f"{value}"


def _known(run: Run, folder: str) -> list[str]:
    """Facts of the stage that are no figures of samples."""
    reward = run.stages.get("reward", {}) if folder == "reward" else {}
    names = {"accuracy": "Accuracy on preferences", "agreement_with_ai": "Agreement with the AI that labelled"}
    lines = [
        f"{text}: {_said(reward[name])}, on {reward.get('on', '')}." for name, text in names.items() if name in reward
    ]
    if "shorter_wins" in reward:
        lines.append(f"Preferring the shorter response: {_said(reward['shorter_wins'])}.")
    return lines


def _limits(run: Run, figures: Mapping[str, Any], tables: Mapping[str, Any]) -> list[str]:
    lines = [f"One run, seed {tables.get('run', {}).get('seed', 0)}: the intervals say nothing about other seeds."]
    if figures.get("trained_on"):
        lines.append(f"{figures['trained_on']} of the prompts it was measured on were trained on.")
    if figures.get("unknown_before"):
        models = ", ".join(_shortened(str(name)) for name in figures["unknown_before"])
        lines.append(f"What {models} was trained on is not known.")
    if "win_rate/reward" in figures:
        lines.append("`reward` is what training optimised: a gain in it alone is no proof of better replies.")
    lines += [f"{said['stage']}, step {said['step']:.0f}: {said['text']}" for said in run.alarms]
    worth = run.summary.get("worth")
    return [visible(line) for line in [*lines, *([str(worth)] if worth else []), "It was not tested for safety."]]


def _data(run: Run, folder: str) -> list[Sequence[str]]:
    files = [run.path / name for name in ("demonstrations.jsonl", *DATA[folder])]
    rows: list[Sequence[str]] = []
    for file in dict.fromkeys(files):
        if file.exists():
            content = file.read_bytes()
            records = content.count(b"\n")
            rows.append((file.name, f"{records:,}", hashlib.sha256(content).hexdigest()))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join("| " + " | ".join(visible(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shortened(text: str) -> str:
    """Without the name of the user's home."""
    return text.replace(str(Path.home()), "~")

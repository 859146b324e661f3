"""`alignkit doctor` finds what is planted, names the fix, and lets good things pass."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections import namedtuple
from math import nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf import checkup, machine
from alignkit_hf.doctor import app, findings_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from alignkit import AlignkitError, Config, InputError, OwnSampler, Prompt, Sampler, registry
from alignkit.commands import read_recipe
from alignkit.plugins import Broken
from alignkit.testing import TinyPolicy
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from alignkit_hf.machine import Finding

    from alignkit import GroupBatch, Policy, Sampling

Usage = namedtuple("Usage", "total used free")
WORDS = ("<bos>", "<end>", "<pad>", "hello", "user", "assistant", ":", "Hello", ".", "Say", "<|im_end|>", "<unk>")


def states(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(one.name, one.state) for one in findings]


def said(findings: Iterable[Finding], state: str) -> str:
    chosen = [one for one in findings if one.state == state]
    assert all(one.fix for one in chosen if state != "ok"), "each names what to do"
    return "\n".join(f"{one.said} ({one.fix})" for one in chosen)


def tokenizer(bos: int = 1, *, template: str = "", **special: Any) -> Any:
    """A tokenizer that puts BOS `bos` times before a text."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(["<bos>"] * bos + ["$A"]), special_tokens=[("<bos>", 0)]
    )
    names = {"bos_token": "<bos>", "eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>", **special}
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{key: value for key, value in names.items() if value}
    )
    made.chat_template = template or None
    return made


TURNS = "{% for m in messages %}{{ m.role }} : {{ m.content }} END {% endfor %}"


def test_a_good_tokenizer_passes() -> None:
    found = list(checkup.tokenizer(tokenizer(template=TURNS.replace("END", "<end>"))))
    assert states(found) == [("tokenizer", "ok")]
    assert found[0].said == "end <end> (1), padding <pad> (2), BOS <bos> (0)"


@pytest.mark.parametrize(
    ("given", "state", "what"),
    [
        (tokenizer(2), "fail", "puts BOS (<bos>) twice before a text (set add_bos_token = false"),
        (tokenizer(pad_token=None), "warn", "it has no padding token"),
        (tokenizer(eos_token=None), "warn", "it has no end token (set policy.stop_token_ids"),
        (tokenizer(), "warn", "it has no chat template"),
        (tokenizer(template="{{ bos_token }} " + TURNS.replace("END", "<end>")), "warn", "its template writes BOS and"),
        (tokenizer(template=TURNS.replace("END", "<|im_end|>")), "warn", "'<|im_end|>' is among policy.stop_token_ids"),
    ],
)
def test_a_fault_of_a_tokenizer_is_named(given: Any, state: str, what: str) -> None:
    assert what in said(checkup.tokenizer(given), state)


def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(machine.plugins()) == [("plugins", "ok")]
    broken = Broken("x", "alignkit-x", "alignkit-x needs plugin interface 9, but this alignkit has 1")
    monkeypatch.setattr(registry(), "broken", [broken])
    found = said(machine.plugins(), "fail")
    assert "alignkit-x is broken: alignkit-x needs plugin interface 9" in found
    assert "pip uninstall alignkit-x" in found


def test_a_command_that_can_not_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = machine.metadata.EntryPoint("odd", "no_such_module:app", "alignkit.commands")
    monkeypatch.setattr(machine.metadata, "entry_points", lambda group: [point])
    assert "the command odd" in said(machine.plugins(), "fail")


def test_requirements_that_are_not_met_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(machine.versions()) == [("versions", "ok")]
    needs = ["torch>=99", "no-such-package>=2", "other; extra == 'docs'", "old; python_version < '3'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: needs if name == "alignkit" else [])
    found = said(machine.versions(), "fail")
    assert f"alignkit needs torch>=99, and {torch.__version__} is installed" in found
    assert "alignkit needs no-such-package>=2, and it is not installed" in found
    assert len(found.splitlines()) == 2


def test_a_full_disk_is_found_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 2 * 2**30))
    assert states(machine.disk(tmp_path / "not" / "yet")) == [("disk", "ok")] * 3
    found = list(machine.disk(tmp_path, needed=3 * 2**30))
    assert states(found) == [("disk", "fail"), ("disk", "ok"), ("disk", "ok")]
    assert "2.0 GiB are free for runs" in found[0].said
    assert "3.0 GiB are needed" in found[0].said
    assert "keep_checkpoints" in found[0].fix
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 2**29))
    assert states(machine.disk(tmp_path)) == [("disk", "fail")] * 3


def test_a_disk_that_can_not_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    found = list(machine.disk(tmp_path))
    assert states(found) == [("disk", "fail")] * 3
    assert f"{tmp_path} can't be written: No space left on device" in found[0].said


def test_a_driver_without_cuda_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: True)
    assert "finds no CUDA device (install a torch" in said(machine.devices(), "warn")


class Wrong(TinyPolicy):
    """Its sampler and its reference are off by as much as the test says."""

    sampled = reference_off = 0.0

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        batch = super().generate(prompts, n=n, sampling=sampling, seed=seed, places=places)
        assert batch.logprobs is not None
        return batch.replace(logprobs=batch.logprobs - self.sampled)

    def reference(self) -> Policy[Any]:
        frozen = super().reference()
        with torch.no_grad():
            next(iter(next(iter(frozen.modules().values())).parameters())).mul_(1 + self.reference_off)
        return frozen


@pytest.mark.parametrize(
    ("sampled", "off", "expected"),
    [(0.0, 0.0, ["ok", "ok"]), (1e-3, 0.0, ["fail", "ok"]), (-1e-3, 0.0, ["fail", "ok"]), (0.0, 0.1, ["ok", "fail"])],
)
def test_a_run_must_start_with_ratio_1_and_kl_0(sampled: float, off: float, expected: list[str]) -> None:
    policy = Wrong()
    policy.sampled, policy.reference_off = sampled, off
    found = list(checkup.exactness(policy))
    assert states(found) == [("ratio", expected[0]), ("kl", expected[1])]
    assert all(bool(one.fix) == (one.state == "fail") for one in found)


class Elsewhere(Sampler[Config]):
    """Says log-probabilities that are off by as much as the test says."""

    off = 0.0
    closed = False

    def sync(self, policy: Policy[Any], version: int) -> None:
        self.policy = policy

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        batch = self.policy.generate(prompts, n=n, sampling=sampling, seed=seed, places=places)
        assert batch.logprobs is not None
        return batch.replace(logprobs=None, sampler_logprobs=batch.logprobs + self.off)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("off", "expected"), [(0.0, "ok"), (0.1, "warn"), (-0.1, "warn"), (0.5, "fail"), (-0.5, "fail"), (nan, "fail")]
)
def test_an_engine_of_its_own_must_sample_what_is_trained(off: float, expected: str) -> None:
    engine = Elsewhere()
    engine.off = off
    resolved: Any = SimpleNamespace(sampler=lambda folder: engine, names={"sampler": "elsewhere"})
    [found] = checkup.sampler(resolved, TinyPolicy())
    assert (found.name, found.state) == ("sampler", expected)
    assert found.said.startswith("elsewhere and the trainer differ by ")
    assert bool(found.fix) == (expected != "ok")
    assert engine.closed


def test_the_policy_itself_is_no_engine_of_its_own() -> None:
    resolved: Any = SimpleNamespace(sampler=lambda folder: OwnSampler(), names={"sampler": "policy"})
    assert not list(checkup.sampler(resolved, TinyPolicy()))


@pytest.mark.parametrize(
    ("error", "text"),
    [(InputError("odd", where="a.b", fix="mend it"), "a.b: odd"), (AlignkitError("odd"), "odd"),
     (ValueError("odd"), "ValueError: odd")],
)  # fmt: skip
def test_an_error_of_a_check_is_a_finding(error: Exception, text: str) -> None:
    def check() -> Iterable[Finding]:
        yield machine.Finding("x", "ok", "so far")
        raise error

    found = list(machine.guarded("x", check))
    assert [one.said for one in found] == ["so far", text]
    assert found[1].fix == getattr(error, "fix", "")


def test_a_model_is_examined_from_its_folder(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    done = CliRunner().invoke(app, [str(folder), "--json", "--out", str(tmp_path), "-o", "run.device=cpu"])
    found = json.loads(done.stdout)["findings"]
    by_name = {one["name"]: one for one in found if one["state"] != "warn"}
    assert {one["name"] for one in found if one["state"] == "fail"} <= {"disk", "versions"}
    assert done.exit_code == (3 if any(one["state"] == "fail" for one in found) else 0)
    assert {"versions", "plugins", "devices", "tokenizer", "model", "layout", "ratio", "kl", "memory"} <= {*by_name}
    assert by_name["layout"]["said"].startswith("packed equals padded: log-probabilities are ")
    assert by_name["model"]["said"].startswith("LlamaForCausalLM on cpu, computing in float32")
    named = tmp_path / "recipe.toml"
    named.write_text(f"[policy]\nmodel = {str(folder)!r}\n[sampler]\nplugin = 'vllm'\nurls = ['http://127.0.0.1:9']\n")
    with named.open("a") as more:
        more.write("start_seconds = 0.1\nrestarts = 0\n[run]\ndevice = 'cpu'\n")
    done = CliRunner().invoke(app, [str(named), "--json", "--out", str(tmp_path)])
    assert done.exit_code == 3
    [failed] = [one for one in json.loads(done.stdout)["findings"] if one["name"] == "sampler"]
    assert failed["state"] == "fail"
    assert "waited 0.1 s for http://127.0.0.1:9 to answer" in failed["said"]
    said = CliRunner().invoke(app, []).stdout
    assert said.startswith("ok    versions: Python 3.")
    assert "ratio" not in said


def test_what_can_not_be_read_is_no_finding(tmp_path: Path) -> None:
    for target, what in ((str(tmp_path / "none"), "no model folder"), (str(tmp_path / "none.toml"), "no such recipe")):
        done = CliRunner().invoke(app, [target])
        assert isinstance(done.exception, InputError), "the command line's exit code 2"
        assert what in str(done.exception)


def test_a_damaged_model_ends_the_checks_of_it(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"damaged")
    resolved = read_recipe(None, flags={}, overrides=[f"policy.model={folder}", "run.device=cpu"])
    found = list(findings_of(resolved, tmp_path))
    assert [one.name for one in found if one.state == "fail" and one.name != "disk"] == ["model"]
    assert not any(one.name == "ratio" for one in found)

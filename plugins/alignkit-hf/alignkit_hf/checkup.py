"""What `alignkit doctor` checks of a model: tokenizer, memory, layouts, and that a run starts with ratio 1 and KL 0."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import torch

from alignkit import Policy, Prompt, Sampling
from alignkit.commands import dry_run, size_text
from alignkit_hf import loading
from alignkit_hf.machine import Finding, disk, guarded
from alignkit_hf.policy import HFPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.commands import Resolved
    from alignkit_hf.modeling import PackedModel

RATIO = {torch.float32: 2e-4, torch.bfloat16: 0.2}
"""How far sampled log-probabilities may be from those of the training pass, in nats, by the precision of the
computation: thousands of roundings, and far less than any mistake."""
CHAT = ({"role": "user", "content": "Say hello."},)


def checkup(resolved: Resolved, out: Path) -> Iterator[Finding]:
    """The checks of a recipe's policy, from the cheapest to the dearest. One that can't be loaded ends them."""
    if resolved.names["policy"] == "hf":
        yield from guarded("tokenizer", lambda: tokenizer(loading.tokenizer_of(resolved.config("policy"))))
    yield from guarded("memory", lambda: memory(resolved, out))
    found: list[Policy[Any]] = []

    def load() -> Iterator[Finding]:
        policy = resolved.build("policy")
        found.append(policy)
        said = policy.explain() or "loaded"
        if not isinstance(policy, HFPolicy):
            yield Finding("model", "ok", said)
            return
        yield Finding("model", "ok", f"{computing(policy.raw)}; {policy.encoder.note or 'end of responses as stored'}")
        yield layouts(policy)

    yield from guarded("model", load)
    for policy in found:
        yield from guarded("exactness", lambda policy=policy: exactness(policy))  # type: ignore[misc]
        if "sampler" in resolved.names:
            yield from guarded("sampler", lambda policy=policy: sampler(resolved, policy))  # type: ignore[misc]


def tokenizer(tokenizer: Any) -> Iterator[Finding]:
    """Padding, the end token, BOS and the chat template."""
    end, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    if end is None:
        fix = "set policy.stop_token_ids, unless the model's generation config names an end"
        yield Finding("tokenizer", "warn", "it has no end token", fix)
    if pad is None:
        fix = "none is needed here; what is saved pads with the end token"
        yield Finding("tokenizer", "warn", "it has no padding token", fix)
    doubled = bos is not None and tokenizer("hello")["input_ids"][:2] == [bos, bos]
    if doubled:
        fix = "set add_bos_token = false in tokenizer_config.json, or remove BOS from the post-processor"
        yield Finding("tokenizer", "fail", f"it puts BOS ({tokenizer.bos_token}) twice before a text", fix)
    if not tokenizer.chat_template:
        yield Finding(
            "tokenizer", "warn", "it has no chat template: chats are rendered as `User: ...` lines",
            "take the instruction-tuned model's tokenizer, or train on plain texts",
        )  # fmt: skip
    else:
        text = tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
        if bos is not None and not doubled and tokenizer(text)["input_ids"][:2] == [bos, bos]:
            yield Finding(
                "tokenizer", "warn", "its template writes BOS and it adds one more: alignkit drops that, others don't",
                "elsewhere, encode rendered chats with add_special_tokens=False",
            )  # fmt: skip
        end_of_turn = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "Hello."}], tokenize=False)
        if end is not None and tokenizer.eos_token not in end_of_turn.partition("Hello.")[2]:
            fix = f"see that {end_of_turn.partition('Hello.')[2].strip()!r} is among policy.stop_token_ids"
            yield Finding("tokenizer", "warn", f"its template does not end a turn with {tokenizer.eos_token}", fix)
    said = (
        f"end {tokenizer.eos_token} ({end}), padding {tokenizer.pad_token} ({pad}), BOS {tokenizer.bos_token} ({bos})"
    )
    if not doubled:
        yield Finding("tokenizer", "ok", said)


def memory(resolved: Resolved, out: Path) -> Iterator[Finding]:
    """The estimate of `--dry-run`, beside what is free; without an algorithm, that of loading the model."""
    stages = dry_run(resolved)["memory"] if {"optimizer", "demonstrations"} & resolved.names.keys() else {}
    free = psutil.virtual_memory().available
    for name, stage in stages.items():
        place = stage["assumed"]["device"]
        if place == "cuda":
            free = torch.cuda.mem_get_info()[0]
        peak, said = stage["peak"], f"{name} takes about {size_text(stage['peak'])}"
        fix = "set policy.lora.r, a smaller max_tokens or policy.weights = 'bfloat16'; see docs/how-to/scale.md"
        if stage["unknown"]:
            said += f" without {', '.join(stage['unknown'])}, whose size is not known"
        fits = peak <= free
        yield Finding("memory", "ok" if fits else "fail", f"{said}, {size_text(free)} are free", "" if fits else fix)
        kept = sum(one["weights"] + one["adam"] for one in stage["models"].values() if one["trained"])
        copies = getattr(resolved.config("optimizer"), "keep_checkpoints", 2) if "optimizer" in resolved.names else 2
        yield from (one for one in disk(out, (copies + 1) * kept) if one.state != "ok")
    if not stages:
        yield Finding("memory", "ok", f"{size_text(free)} are free")


def computing(model: PackedModel) -> str:
    """Where and in which precision a model runs."""
    dtype = str(model.autocast or model.lm.dtype).removeprefix("torch.")
    return f"{type(model.lm).__name__} on {model.device}, computing in {dtype}"


def layouts(policy: HFPolicy) -> Finding:
    """Whether packed and padded are the same, as the probe measured it while loading."""
    path, attention = policy.raw.path, policy.raw.lm.config._attn_implementation
    if path.packed:
        return Finding("layout", "ok", f"packed equals padded{f': {path.accuracy}' if path.accuracy else ''}")
    if path.reason:
        said = f"padded with {attention}, which is slower: {path.reason}"
        return Finding("layout", "warn", said, "none, unless the reason is a bug")
    return Finding("layout", "ok", f"padded with {attention}, as the options ask")


def exactness(policy: Policy[Any]) -> Iterator[Finding]:
    """Whether the sampler's log-probabilities are the trainer's, and the reference's are the policy's."""
    with torch.no_grad():
        batch = policy.generate(_prompts(policy), n=2, sampling=Sampling(max_tokens=16), seed=0)
        trained = policy.forward(batch).logprobs.float()
        reference = policy.reference().forward(batch).logprobs.float()
    assert batch.logprobs is not None
    apart, drift = float((trained - batch.logprobs).abs().max()), float((trained - reference).abs().max())
    allowed = _rounding(policy)
    said = f"sampler and trainer differ by {apart:.1e} nats over {batch.num_tokens} tokens"
    if apart <= allowed:
        yield Finding("ratio", "ok", f"{said}: the ratio starts at 1")
    else:
        fix = 'try policy.layout = "padded", then policy.dtype = "float32"; if it stays, report the model'
        yield Finding(
            "ratio", "fail", f"{said}, where rounding explains {allowed:.0e}: the ratio does not start at 1", fix
        )
    if drift == 0:
        yield Finding("kl", "ok", "the reference is the policy: the KL starts at 0")
    else:
        fix = 'set policy.reference = "copy"; if it stays, report the model'
        yield Finding("kl", "fail", f"the reference differs from the policy by {drift:.1e} nats at the start", fix)


def sampler(resolved: Resolved, policy: Policy[Any]) -> Iterator[Finding]:
    """Whether an engine of its own, which the recipe names, gives the trainer's log-probabilities."""
    with TemporaryDirectory(prefix="alignkit-doctor-") as folder, closing(resolved.sampler(Path(folder))) as engine:
        engine.sync(policy, 0)
        batch = engine.generate(_prompts(policy), n=2, sampling=Sampling(max_tokens=16), seed=0)
        if batch.sampler_logprobs is None:
            return
        with torch.no_grad():
            trained = policy.forward(batch).logprobs.float()
    apart = float((trained - batch.sampler_logprobs.to(trained.device)).abs().max())
    said = f"{resolved.names['sampler']} and the trainer differ by {apart:.1e} nats over {batch.num_tokens} tokens"
    if apart <= _rounding(policy):
        yield Finding("sampler", "ok", said)
    elif apart <= RATIO[torch.bfloat16]:
        fix = "none, if it computes in bfloat16: [sampler] mismatch weighs that"
        yield Finding("sampler", "warn", f"{said}, as by coarser rounding", fix)
    else:
        fix = "let it start with the policy's own model, and give its log-probabilities after temperature"
        yield Finding("sampler", "fail", f"{said}: it has other weights, or says something else", fix)


def _prompts(policy: Policy[Any]) -> list[Prompt]:
    if isinstance(policy, HFPolicy) and policy.encoder.use_template:
        return [Prompt.of(list(CHAT)), Prompt.of([{"role": "user", "content": "What is 2 + 2?"}])]
    return [Prompt(text="Once upon a time"), Prompt(text="The answer is")]


def _rounding(policy: Policy[Any]) -> float:
    """How far log-probabilities of the same weights may be apart."""
    if isinstance(policy, HFPolicy):
        return RATIO.get(policy.raw.autocast or policy.raw.lm.dtype, RATIO[torch.bfloat16])
    return RATIO[torch.float32]

"""A vLLM engine of the training process, on its device: it sleeps while the policy trains. Written for vLLM 0.32.

vLLM runs the model in a child process of its own and is imported here only when the engine is made.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from alignkit_vllm_worker import OWNER

from alignkit import InputError, PluginError
from alignkit_vllm.client import Sampled, Trouble, require_updated
from alignkit_vllm.server import BACKEND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alignkit import Sampling

_QUICK_SECONDS = 120.0
_LOOK_SECONDS = 0.5
_SWITCHES = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # a warning about tied weights comes with every update
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # the results of a command go to stdout
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process that has trained hangs in its threads
}


class InProcess:
    """An engine that answers as `Client` does.

    Args:
        model: folder or hub id.
        flags: as for a server.
    """

    url = "vLLM in this process"

    def __init__(self, model: str, flags: Sequence[str] = ()) -> None:
        with _environment():
            self._llm, self._sleeps = _engine(model, flags)
        self._asleep = False
        try:
            self._ask("prepare for weights", lambda llm: llm.init_weight_transfer_engine({"init_info": {}}))
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Ends the engine's process."""
        self._llm.llm_engine.engine_core.shutdown()

    def version(self) -> str:
        """The version of the engine's weights."""
        return str(self._ask("say the version of its weights", lambda llm: llm.get_weight_version()))

    def update(self, paths: Sequence[str], version: str, *, seconds: float) -> None:
        """Wakes the engine and has it load weights; no key or value of old ones stays."""
        self._wake()
        info = {"update_info": {"paths": list(paths), "version": version}}
        self._ask("begin an update of its weights", lambda llm: llm.start_weight_update(), seconds)
        self._ask(f"load weights {version}", lambda llm: llm.update_weights(info), seconds)
        self._ask(f"finish the update to weights {version}", lambda llm: llm.finish_weight_update(version), seconds)
        forgot = self._ask("forget keys and values of old weights", lambda llm: llm.reset_prefix_cache())
        require_updated(self.url, version, found=self.version(), forgot=bool(forgot))

    def complete(
        self, prompt: Sequence[int], *, n: int, sampling: Sampling, seed: int, stop_ids: Sequence[int], seconds: float
    ) -> list[Sampled]:
        """`n` responses to token ids; the engine stays awake."""
        [row] = self._sampled([prompt], [seed], n, sampling, stop_ids, seconds)
        return row

    def complete_all(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        stop_ids: Sequence[int],
        seconds: float,
    ) -> list[list[Sampled]]:
        """`n` responses to each of the prompts, in one call; then the engine sleeps, because the policy trains.

        Raises:
            Trouble: the engine died, was silent, or gave no answer.
            PluginError: it refuses the request, or read other tokens than these.
        """
        rows = self._sampled(prompts, seeds, n, sampling, stop_ids, seconds)
        self._sleep()
        return rows

    def _sampled(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        seconds: float,
    ) -> list[list[Sampled]]:
        self._wake()
        drawn = n if sampling.temperature else 1  # vLLM refuses to draw the likeliest tokens twice
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        params = [_params(sampling, drawn, seed, stop_ids) for seed in seeds]
        answers = self._ask(f"give {n} responses", lambda llm: llm.generate(inputs, params, use_tqdm=False), seconds)
        if len(answers) != len(prompts):
            raise Trouble(f"{self.url} answered {len(answers)} of {len(prompts)} prompts")
        return [
            self._row(prompt, answer, drawn) * (n // drawn) for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _row(self, prompt: Sequence[int], answer: Any, drawn: int) -> list[Sampled]:
        if list(answer.prompt_token_ids) != list(prompt):
            read = f"{list(answer.prompt_token_ids)[:8]}... where it was given {list(prompt)[:8]}..."
            raise PluginError(f"{self.url} read the tokens {read}")
        found = sorted(answer.outputs, key=lambda output: int(output.index))
        if len(found) != drawn:
            raise Trouble(f"{self.url} gave {len(found)} responses where {drawn} were asked for")
        try:
            return [_response(output) for output in found]
        except (KeyError, TypeError, ValueError) as error:
            raise Trouble(f"{self.url} gave no responses: {error}") from error

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what torch keeps for later is missing for the engine
            self._ask("wake up", lambda llm: llm.wake_up())
            self._asleep = False

    def _sleep(self) -> None:
        if self._sleeps and not self._asleep:
            self._ask("sleep", lambda llm: llm.sleep(level=1))
            self._asleep = True

    def _ask(self, what: str, call: Callable[[Any], Any], seconds: float = _QUICK_SECONDS) -> Any:
        """The answer. The call has a thread of its own, because it never returns if the engine is killed meanwhile."""
        answer: Future[Any] = Future()
        Thread(target=_answer, args=(answer, call, self._llm), name="vllm-engine", daemon=True).start()
        end = time.monotonic() + seconds
        while not wait([answer], min(seconds, _LOOK_SECONDS)).done:
            if self._is_dead():
                raise Trouble(f"{self.url} died while asked to {what}")
            if time.monotonic() > end:
                raise Trouble(f"waited {seconds:g} s for {self.url} to {what}")
        try:
            return answer.result()
        except ValueError as error:  # what a request must not hold
            raise PluginError(f"{self.url} refused to {what}: {error}") from error
        except Exception as error:
            raise Trouble(f"{self.url} failed to {what}: {type(error).__name__}: {error}") from error

    def _is_dead(self) -> bool:
        return bool(self._llm.llm_engine.engine_core.resources.engine_dead)


def _answer(answer: Future[Any], call: Callable[[Any], Any], llm: Any) -> None:
    try:
        answer.set_result(call(llm))
    except BaseException as error:
        answer.set_exception(error)


@contextmanager
def _environment() -> Iterator[None]:
    """What vLLM and its child read from the environment; vLLM's own entries must not stay for what the run starts."""
    before = dict(os.environ)
    os.environ.update({**_SWITCHES, **before, OWNER: str(os.getpid())})
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # else it seeds our generators
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _engine(model: str, flags: Sequence[str]) -> tuple[Any, bool]:
    """A `vllm.LLM`, and whether it can sleep."""
    from vllm import LLM, EngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = ["--model", model, "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    parser.error = _refuse
    args = EngineArgs.from_cli_args(parser.parse_args([*words, *flags]))
    args.weight_transfer_config = WeightTransferConfig(backend=BACKEND.format("file"))
    args.enable_sleep_mode = current_platform.is_sleep_mode_available()
    try:
        return LLM.from_engine_args(args), bool(args.enable_sleep_mode)
    except Exception as error:
        raise Trouble(f"vLLM did not start in this process: {type(error).__name__}: {error}") from error


def _refuse(message: str) -> NoReturn:
    fix = "vLLM's engine takes them here: leave out what is for a server, such as --port"
    raise InputError(message, where="sampler.flags", fix=fix)


def _params(sampling: Sampling, n: int, seed: int, stop_ids: Sequence[int]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        n=n,
        seed=seed,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k or -1,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        min_tokens=sampling.min_tokens,
        repetition_penalty=sampling.repetition_penalty,
        stop=list(sampling.stop),
        stop_token_ids=list(stop_ids),
        ignore_eos=True,
        logprobs=0,
        detokenize=bool(sampling.stop),
    )


def _response(output: Any) -> Sampled:
    if output.finish_reason not in ("stop", "length"):
        raise ValueError(f"finish_reason is {output.finish_reason}")
    ids = [int(token) for token in output.token_ids]
    if not ids or len(ids) != len(output.logprobs):
        raise ValueError(f"{len(ids)} tokens with {len(output.logprobs)} log-probabilities")
    logprobs = [float(likely[token].logprob) for token, likely in zip(ids, output.logprobs, strict=True)]
    return Sampled(ids, logprobs, output.finish_reason == "stop")

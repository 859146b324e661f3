"""The sampler `vllm`: a vLLM server samples with the policy's weights, which go to it before every batch.

The first process writes the weights and updates all servers; every process samples. After an update the version, and
the log-probabilities of a probe, must be the policy's: vLLM keeps old keys and values, or an old tied head, in silence.
With `colocated`, an engine of this process takes the servers' place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alignkit import GroupBatch, InputError, PluginError, Prompt, Sampler, Sampling, Servable, StoppedByCheck
from alignkit.ops import are_split, count_pass, mismatch_weights, num_processes, process_index
from alignkit_vllm.client import Client, Sampled, Trouble
from alignkit_vllm.colocated import InProcess
from alignkit_vllm.direct import Direct
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.server import Server, wait_until_ready
from alignkit_vllm.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit import Context, Policy

    Rows = list[list[Sampled]]
    Some = TypeVar("Some", Sampled, list[Sampled])

logger = logging.getLogger(__name__)

STATE = "servers.json"
PROBE = Prompt.of("The weights that answer here should be those of the step before. " * 5)
PROBE_TOKENS = 8


class VLLMSampler(Sampler[VLLMOptions]):
    """Samples through vLLM servers.

    Attributes:
        server: the server that this process started, if any.
        tries: how often a server may still be started or updated again in this run.
    """

    def __init__(self, config: VLLMOptions | None = None, context: Context | None = None) -> None:
        super().__init__(config, context)
        self.server: Server | None = None
        self.tries = self.config.restarts
        self._clients: list[Client | InProcess] = []
        self._transfer: Transfer | None = None
        self._direct: Direct | None = None
        self._token = ""
        self._whole = self._probed = self._closed = False
        self._begun: Future[Rows] | None = None
        self._saved: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def sync(self, policy: Policy[Any], version: int) -> None:
        """Writes the policy's weights and has the servers load them.

        Raises:
            InputError: the policy can't hand out its weights.
            StoppedByCheck: a server could not be started or updated, for all tries.
        """
        if not isinstance(policy, Servable):
            what = f"the policy {type(policy).__name__} can't hand its weights to another engine"
            raise InputError(what, where="sampler", fix='use --sampler policy, or a policy with `named_weights`: "hf"')
        self._wait()
        self._policy, self._version = policy, version
        self._whole = self._probed = self._closed = False
        self._token = f"{uuid.uuid4().hex[:12]}-{version}"
        if self.config.transfer != "file":
            self._send_directly()
            return
        if process_index() > 0:
            for _ in policy.named_weights():  # gathering sharded weights needs every process
                pass
            return
        if self._transfer is None:
            self._transfer = Transfer(Path(self.config.transfer_folder).expanduser())
        self._transfer.write(policy.named_weights(), self._token)
        self._bring_up_to_date()

    def _send_directly(self) -> None:
        """From device to device; every process takes part."""
        try:
            if process_index() == 0:
                self._find_servers()
            if self._direct is None:
                servers = [client for client in self._clients if isinstance(client, Client)]
                self._direct = Direct(self.config.transfer, servers, self.config.update_seconds)
            self._direct.send(self._policy, self._token)
        except Trouble as trouble:
            raise _unmended(trouble) from trouble
        if process_index() == 0:
            self._whole = True
            self._write_state()

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        """Samples; if a server dies or turns out to have other weights, that is mended and everything sampled again.

        Raises:
            StoppedByCheck: that did not help, for all tries; or the probe shows that a server has other weights.
        """
        ids, seeds = self._asked(prompts, sampling, seed, places)
        return self._batch(prompts, ids, self._sampled(ids, seeds, n, sampling), sampling, self._version)

    def begin(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> Callable[[], GroupBatch]:
        """As `generate`, in a thread that only talks to the servers: the probe is made before, the batch after."""
        ids, seeds = self._asked(prompts, sampling, seed, places)
        self._sampled([], [], 1, sampling)
        version, pool = self._version, ThreadPoolExecutor(1, thread_name_prefix="vllm-ahead")
        begun = self._begun = pool.submit(self._sampled, ids, seeds, n, sampling)
        pool.shutdown(wait=False)
        return lambda: self._batch(prompts, ids, begun.result(), sampling, version)

    def _asked(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, places: Sequence[int] | None
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of the prompts, and their seeds."""
        numbers = range(len(prompts)) if places is None else places
        return self._served_policy.prompt_ids(prompts, sampling.max_tokens), [_seed(seed, place) for place in numbers]

    def _batch(
        self, prompts: Sequence[Prompt], ids: list[list[int]], rows: Rows, sampling: Sampling, version: int
    ) -> GroupBatch:
        responses, finished = [[one.ids for one in row] for row in rows], [one.finished for row in rows for one in row]
        batch: GroupBatch = self._served_policy.batch_of(prompts, ids, responses, finished, sampling)
        count_pass(self._served_policy.modules(), batch, learns=False)
        logprobs = torch.tensor([x for row in rows for one in row for x in one.logprobs], device=batch.device)
        return batch.replace(sampler_logprobs=logprobs, version=version)

    def _wait(self) -> None:
        """Until the servers no longer sample what was begun."""
        if self._begun is not None:
            wait([self._begun])

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        """The batch with its advantages weighed as `mismatch` says."""
        weights, figures = mismatch_weights(batch, self.config.mismatch, self.config.mismatch_cap)
        if batch.advantages is None or self.config.mismatch == "off":
            return batch, figures
        return batch.replace(advantages=batch.advantages * weights), figures

    def close(self) -> None:
        self._closed = True
        self._let_go()
        self._wait()
        for way in (self._transfer, self._direct):
            if way is not None:
                way.close()
        self._transfer = self._direct = None
        if self._saved is not None:
            shutil.rmtree(self._saved, ignore_errors=True)
            self._saved = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def _served_policy(self) -> Any:
        if not hasattr(self, "_policy"):
            raise ValueError("sync comes before generate")
        return self._policy

    def _sampled(self, ids: Sequence[Sequence[int]], seeds: Sequence[int], n: int, sampling: Sampling) -> Rows:
        while True:
            try:
                self._check_servers()
                if not self._probed:
                    self._probe()
                rows = self._ask_all(ids, seeds, n, sampling)
                self._check_servers()  # an update by someone else meanwhile would have mixed two policies
                return rows
            except Trouble as trouble:
                self._recover(trouble)

    def _ask_all(self, ids: Sequence[Sequence[int]], seeds: Sequence[int], n: int, sampling: Sampling) -> Rows:
        for engine in self._clients:
            if isinstance(engine, InProcess):
                return self._complete(engine.complete_all, ids, n=n, sampling=sampling, seeds=seeds)

        def one(number: int) -> list[Sampled]:
            client = self._clients[number % len(self._clients)]
            return self._complete(client.complete, ids[number], n=n, sampling=sampling, seed=seeds[number])

        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="vllm")
        try:
            return list(pool.map(one, range(len(ids))))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, complete: Callable[..., list[Some]], ids: Sequence[Any], **how: Any) -> list[Some]:
        stop_ids, seconds = self._served_policy.stop_ids, self.config.sample_seconds
        return complete(ids, stop_ids=stop_ids, seconds=seconds, **how)

    def _check_servers(self) -> None:
        """Raises Trouble unless every server has exactly the weights of the last sync."""
        if process_index() > 0:
            self._read_state()
        elif not self._whole:
            raise Trouble("the last update of the servers' weights failed half way")
        for client in self._clients:
            if (found := client.version()) != self._token:
                raise Trouble(f"{client.url} has weights {found}, not {self._token}: another run, or it started anew")

    @torch.no_grad()
    def _probe(self) -> None:
        """Has every server answer greedily, and compares its log-probabilities with the policy's.

        Raises:
            StoppedByCheck: they are further apart than `probe_limit`.
        """
        policy, sampling = self._served_policy, Sampling(max_tokens=PROBE_TOKENS, temperature=0.0)
        ids = policy.prompt_ids([PROBE], PROBE_TOKENS)
        for client in self._clients:
            [found] = self._complete(client.complete, ids[0], n=1, sampling=sampling, seed=0)
            batch = policy.batch_of([PROBE], ids, [[found.ids]], [found.finished], sampling)
            own = policy.forward(batch).logprobs.float().cpu()
            apart = float((own - torch.tensor(found.logprobs)).abs().mean())
            if not apart <= self.config.probe_limit:
                raise StoppedByCheck(
                    f"{client.url} says that it has weights {self._token}, but its log-probabilities are {apart:.2g} "
                    "nats per token from the policy's\n  fix: start the server with the policy's own model; if both "
                    f"compute in a coarse type, raise sampler.probe_limit = {self.config.probe_limit:g}"
                )
        self._probed = True

    def _recover(self, trouble: Trouble) -> None:
        """Starts or updates the servers again; raises StoppedByCheck if there are no tries left."""
        if process_index() > 0 or self._closed or self._direct is not None:
            raise _unmended(trouble) from trouble
        self._spend(trouble)
        self._bring_up_to_date()

    def _spend(self, trouble: Trouble) -> None:
        """One try less; what was connected or started is given up."""
        self._whole = False
        said = str(trouble)
        if self.server is not None and self.server.has_died() and str(self.server.log) not in said:
            said += self.server.last_words()
        self._let_go()
        if self.config.colocated:
            raise StoppedByCheck(f"{said}\n  fix: look at what vLLM wrote above, then --resume") from trouble
        if not self.tries:
            used = f"sampler.restarts = {self.config.restarts} tries are used up"
            look = "see that a server runs at each of sampler.urls" if self.config.urls else "look at the server's log"
            raise StoppedByCheck(f"{said}\n  fix: {look}, then --resume; {used}") from trouble
        self.tries -= 1
        logger.warning("%s; trying again, %d more tries are left", said, self.tries)

    def _let_go(self) -> None:
        for client in self._clients:
            client.close()
        self._clients = []
        if self.server is not None:
            self.server.stop()
            self.server = None

    def _bring_up_to_date(self) -> None:
        """Starts the server if it is not there, and has all servers load the files of the last sync."""
        assert self._transfer is not None
        while not self._whole:
            try:
                self._find_servers()
                for client in self._clients:
                    client.update(self._transfer.paths, self._token, seconds=self.config.update_seconds)
                self._whole = True
            except Trouble as trouble:
                self._spend(trouble)
        self._write_state()

    def _find_servers(self) -> None:
        """Connects to the given servers, or starts one; after trouble anew."""
        if self._clients:
            return
        options = self.config
        if options.colocated:
            logger.warning("starting vLLM in this process, which takes a minute")
            self._clients = [InProcess(self._model(), options.flags)]
            return
        if not options.urls:
            self.server = Server(options, self._model(), self._folder, options.transfer)
            logger.warning("starting vLLM at %s, which takes a minute; log: %s", self.server.url, self.server.log)
        clients = [Client(url) for url in options.urls or [self.server.url]]  # type: ignore[union-attr]
        self._clients = list(clients)
        for client in clients:
            wait_until_ready(client, options.start_seconds, self.server)
            if options.transfer == "file":
                client.connect()

    def _model(self) -> str:
        """What the server starts with: of the same architecture and tokens as the policy."""
        if self.config.model:
            return self.config.model
        if are_split(self._served_policy.modules()):
            what = "a policy whose weights are split can't save a copy for the server to start with"
            raise InputError(what, where="sampler.model", fix="name the folder or hub id that the policy came from")
        if self._saved is None:
            shutil.rmtree(self._folder / "model", ignore_errors=True)
            self._served_policy.save(self._folder / "model")
            self._saved = self._folder / "model"
        return str(self._saved.resolve())

    @property
    def _folder(self) -> Path:
        if self.context.folder is not None:
            return self.context.folder / "sampler"
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="alignkit-sampler-")
        return Path(self._temporary.name)

    def _write_state(self) -> None:
        """Tells the other processes where the servers are, and which weights they have."""
        if num_processes() > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            state = {"urls": [client.url for client in self._clients], "token": self._token}
            (self._folder / STATE).write_text(json.dumps(state), encoding="utf-8")

    def _read_state(self) -> None:
        if self.context.folder is None:
            raise PluginError(
                "the sampler vllm in several processes needs a run directory: use `alignkit run`, or out="
            )
        state = json.loads((self._folder / STATE).read_text(encoding="utf-8"))
        self._token = state["token"]
        if [client.url for client in self._clients] != state["urls"]:
            self._clients = [Client(url) for url in state["urls"]]


def _unmended(trouble: Trouble) -> StoppedByCheck:
    return StoppedByCheck(f"{trouble}\n  fix: look at the server, then --resume")


def _seed(seed: int, place: int) -> int:
    """vLLM adds a response's number to it, so the seeds of two places lie far apart, and below 2^63."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest(), "little") >> 2

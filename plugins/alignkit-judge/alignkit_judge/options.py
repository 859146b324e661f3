"""Options of the judge: which models, how they are asked, and what it may cost. Free of torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Interval

from alignkit import Config, Count, Fraction, InputError, Natural, NonNegative, Positive, PreferencesSpec, may_be_model
from alignkit_judge.rubrics import principles_of

OPENAI = "https://api.openai.com/v1"
Protocol = Literal["pairwise", "listwise", "pointwise"]


@dataclass(frozen=True, kw_only=True)
class JudgeModel(Config):
    """One model that judges."""

    backend: Literal["openai", "local"] = "openai"
    """`openai` asks any server that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, llama.cpp, `transformers
    serve`), `local` reads the verdict from the logits of a transformers causal LM, without a server."""
    model: str = ""
    """Name of the model at the server; folder or hub id of a local one."""
    base_url: str = OPENAI
    """Address of the server's API, up to /v1."""
    key_env: str = ""
    """Environment variable that holds the server's key, never the key itself. Empty: OPENAI_API_KEY for OpenAI, no key
    for other servers."""
    temperature: NonNegative = 0.0
    """Temperature at which replies are sampled, for a local judge its reasoning; the verdict of a local judge is read,
    not sampled. OpenAI's reasoning models take 1 only."""
    reply_tokens: Count = 512
    """Longest reply, in tokens; of a local judge its longest reasoning."""
    structured: Literal["json-schema", "json-object", "text"] = "json-schema"
    """How a server is asked for JSON; `text` for servers that know no response_format. The reply is
    checked the same in each case."""
    top_logprobs: Annotated[int, Interval(ge=0, le=20)] = 0
    """Alternatives of a score's token that a server gives; the score is their expected value. 0: the score as it
    stands."""
    price_in: NonNegative = 0.0
    """Price of a million tokens of question."""
    price_out: NonNegative = 0.0
    """Price of a million tokens of reply."""
    min_mass: Fraction = 0.5
    """A local judge abstains where the tokens of all answers together are less likely than this: it does not answer
    what it was asked."""
    batch_tokens: Count = 8192
    """Tokens that a local judge reads at once. It never changes a verdict."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of a local judge's weights; auto: as they were saved."""

    def check(self) -> None:
        """Raises InputError where the judge can't be asked."""
        if not self.model:
            raise InputError("no judge is named", where="model", fix="give the name of a model, or its folder")
        if self.backend == "local":
            self._check_local()
        else:
            self._check_server()

    def _check_local(self) -> None:
        if not may_be_model(self.model):
            raise InputError(f"there is no folder {self.model!r}", where="model", fix="give a folder or a hub id")

    def _check_server(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError("is no address", where="base_url", fix="give one like http://127.0.0.1:8000/v1")
        if address.username or address.password:
            raise InputError("holds credentials", where="base_url", fix="put the key into a variable, see key_env")
        if self.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise InputError(
                "is no name of an environment variable",
                where="key_env",
                fix="name the variable that holds the key, not the key",
            )
        if self.key_variable and not os.environ.get(self.key_variable):
            raise InputError(
                f"the environment variable {self.key_variable} is not set",
                where="key_env",
                fix=f"export {self.key_variable}=..., or name another variable",
            )

    @property
    def key_variable(self) -> str:
        """The environment variable with the key; empty where none is sent."""
        return self.key_env or ("OPENAI_API_KEY" if self.base_url.rstrip("/") == OPENAI else "")

    @property
    def name(self) -> str:
        """The judge's name on records."""
        return Path(self.model).name if self.backend == "local" else self.model


@dataclass(frozen=True, kw_only=True)
class RetryOptions(Config):
    """What happens when a server doesn't answer."""

    attempts: Count = 6
    """Times that a question is sent until it is answered. Between them 0.5 s, twice as long each time, with jitter, or
    what the server's Retry-After asks for."""
    timeout: Positive = 60.0
    """Seconds until a request is given up."""
    max_wait: Positive = 120.0
    """Longest wait before a request, in seconds; a server that asks for more counts as one that doesn't answer."""
    max_failures: Count = 10
    """The run stops, to be gone on with later, when this many questions in a row stay without an answer."""


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Config):
    """What asking servers may cost in one run. Cached verdicts and local judges cost nothing."""

    requests: Natural = 0
    """Requests sent, retries included; 0: no limit."""
    tokens: Natural = 0
    """Tokens of questions and replies together; 0: no limit."""
    money: NonNegative = 0.0
    """Money, in the unit of price_in and price_out; 0: no limit."""
    then: Literal["stop", "use"] = "stop"
    """`stop` ends the run (exit code 3) when the budget is spent, verdicts kept for the next one; `use` goes on with
    what there is."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(JudgeModel):
    """What the judge as preference source and as reward share."""

    judges: tuple[JudgeModel, ...] = ()
    """Several judges that vote, each with options of its own: `[{model = "a"}, {backend = "local", model = "b"}]`."""
    rubric: Literal["helpful", "harmless", "honest"] = "helpful"
    """What is judged, unless a criterion or a constitution says so."""
    criterion: str = ""
    """What is judged, in your own words."""
    constitution: str = ""
    """A text file with a principle on each line (`#` for comments), or a TOML file with `principles = [...]`. For each
    item one is drawn (arXiv:2212.08073)."""
    reasoning: bool = False
    """The judge reasons before its verdict: better and slower."""
    samples: Count = 1
    """Verdicts drawn for each question, of which the most frequent one counts (arXiv:2203.11171)."""
    concurrency: Count = 8
    """Requests to a server under way at a time."""
    retry: RetryOptions = field(default_factory=RetryOptions)
    """What happens when a server doesn't answer: `retry.timeout = 30`."""
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    """What it may cost: `budget.requests = 1000`."""
    cache: str = "auto"
    """SQLite file of verdicts, so that a question is never paid for twice; empty: none. auto: `verdicts.sqlite` in
    `run.cache`."""

    def check(self) -> None:
        """Raises InputError where a judge can't be asked, or options contradict each other."""
        if self.judges and self.model:
            raise InputError("is given beside judges", where="model", fix="make it one of the judges")
        for number, judge in enumerate(self.panel):
            try:
                judge.check() if self.judges else super().check()
            except InputError as error:
                where = f"judges.{number}.{error.where}" if self.judges else error.where
                raise InputError(error.what, where=where, fix=error.fix) from error
        if self.criterion and self.constitution:
            raise InputError("is given beside a constitution", where="criterion", fix="leave one of them out")
        if self.constitution:
            principles_of(self.constitution)
        if self.samples > 1 and any(judge.temperature == 0 for judge in self.panel):
            raise InputError("all samples are the same at temperature 0", where="samples", fix="set temperature")
        if self.samples > 1 and not self.reasoning and any(judge.backend == "local" for judge in self.panel):
            raise InputError("a local judge samples its reasoning only", where="samples", fix="set reasoning = true")
        if self.budget.money and not any(judge.price_in or judge.price_out for judge in self.panel):
            raise InputError("no price is known", where="budget.money", fix="set price_in and price_out")

    @property
    def panel(self) -> tuple[JudgeModel, ...]:
        """The judges: those of `judges`, or else the one that these options name."""
        return self.judges or (self,)


@dataclass(frozen=True, kw_only=True)
class JudgePreferenceOptions(JudgeOptions):
    """A language model ranks responses: fresh samples of the policy, or those of another source (arXiv:2306.05685)."""

    protocol: Protocol = "pairwise"
    """`pairwise` compares two at a time and fits a ranking, `listwise` ranks all at once, `pointwise` scores each from
    1 to 10."""
    orders: Literal["both", "one"] = "both"
    """Whether each question is asked in both orders, where disagreement is a tie, or in one drawn for each item."""
    responses: PreferencesSpec | None = None
    """Preference source whose responses are judged, its own ranks unseen; none: k fresh samples of the policy."""
    k: Annotated[int, Interval(ge=2, le=9)] = 2
    """Responses sampled for each prompt; duplicates are dropped."""
    min_margin: Fraction = 0.05
    """Two responses tie where a local judge's probabilities for them differ by less, or two scores by less than this
    share of their range."""
    abstentions: Literal["drop", "keep"] = "drop"
    """Whether groups on which the judge abstained are left out, or kept without ranks."""


@dataclass(frozen=True, kw_only=True)
class JudgeRewardOptions(JudgeOptions):
    """A language model scores each response from 1 to 10; several judges' scores are averaged."""

"""Options of the judge: which models, how to ask them, and what that may cost. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Interval

from alignkit import (
    Config,
    Count,
    Fraction,
    InputError,
    Natural,
    NonNegative,
    Positive,
    PreferencesSpec,
    check_address,
    check_key_variable,
    may_be_model,
    require_package,
)
from alignkit_judge.rubrics import principles_of

if TYPE_CHECKING:
    from collections.abc import Callable

OPENAI = "https://api.openai.com/v1"
Protocol = Literal["pairwise", "listwise", "pointwise"]


@dataclass(frozen=True, kw_only=True)
class JudgeModel(Config):
    """One model that judges."""

    backend: Literal["openai", "local"] = "openai"
    """`openai`: any server with OpenAI's chat completions (OpenAI, vLLM, Ollama, llama.cpp, `transformers serve`);
    `local`: a transformers causal LM without a server; the verdict is read from its logits."""
    model: str = ""
    """The model's name on the server; for a local model, its folder or hub id."""
    base_url: str = OPENAI
    """Address of the server's API, up to /v1."""
    key_env: str = ""
    """Environment variable that holds the server's key (not the key itself). Empty: OPENAI_API_KEY for OpenAI, no key
    for other servers."""
    temperature: NonNegative = 0.0
    """Sampling temperature of replies; for a local judge, of its reasoning only, because its verdict is not sampled.
    OpenAI's reasoning models accept only 1."""
    reply_tokens: Count = 512
    """Longest reply in tokens; for a local judge, the longest reasoning."""
    structured: Literal["json-schema", "json-object", "text"] = "json-schema"
    """How to ask a server for JSON; `text` for servers without response_format. Replies are checked the same way in
    each case."""
    top_logprobs: Annotated[int, Interval(ge=0, le=20)] = 0
    """How many alternatives to a score's token the server returns; the score is their expected value. 0: the score as
    written."""
    price_in: NonNegative = 0.0
    """Price per million question tokens."""
    price_out: NonNegative = 0.0
    """Price per million reply tokens."""
    min_mass: Fraction = 0.5
    """A local judge abstains if the tokens of all answers together are less likely than this: then it is not answering
    the question."""
    batch_tokens: Count = 8192
    """Tokens that a local judge reads at once. It never changes a verdict."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of a local judge's weights; auto: as saved."""

    def check(self) -> None:
        """Raises InputError if the judge can't be asked."""
        if not self.model:
            raise InputError("names no judge", where="model", fix="give the name or folder of a model")
        local = self.backend == "local"
        self.counts_only_with("backend = 'local'", local, "min_mass", "batch_tokens", "dtype")
        of_servers = ("base_url", "key_env", "structured", "top_logprobs", "price_in", "price_out")
        self.counts_only_with("backend = 'openai'", not local, *of_servers)
        if local:
            self._check_local()
        else:
            self._check_server()

    def _check_local(self) -> None:
        if not may_be_model(self.model):
            raise InputError(f"there is no folder {self.model!r}", where="model", fix="give a folder or a hub id")

    def _check_server(self) -> None:
        require_package("openai", where="backend")
        check_address(self.base_url, where="base_url", example="http://127.0.0.1:8000/v1")
        if self.key_variable:
            check_key_variable(self.key_variable)

    @property
    def key_variable(self) -> str:
        """The environment variable with the key; empty if none is sent."""
        return self.key_env or ("OPENAI_API_KEY" if self.base_url.rstrip("/") == OPENAI else "")

    @property
    def name(self) -> str:
        """The judge's name in records."""
        return Path(self.model).name if self.backend == "local" else self.model


@dataclass(frozen=True, kw_only=True)
class RetryOptions(Config):
    """What happens when a server doesn't answer."""

    attempts: Count = 6
    """How often a question is sent before it counts as unanswered. The wait between attempts starts at 0.5 s and
    doubles, with jitter; the server's Retry-After can make it longer."""
    timeout: Positive = 60.0
    """Seconds before a request is given up."""
    max_wait: Positive = 120.0
    """Longest wait before a request, in seconds; if a server asks for more, the question counts as unanswered."""
    max_failures: Count = 10
    """The run stops when this many questions in a row get no answer; the same command continues it."""
    max_unusable: Count = 20
    """The run stops when this many replies in a row hold no verdict, and shows three of them."""


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Config):
    """What requests to servers may cost in one run. Cached verdicts and local judges are free."""

    requests: Natural = 0
    """Requests, including retries; 0: no limit."""
    tokens: Natural = 0
    """Tokens of questions and replies; 0: no limit."""
    money: NonNegative = 0.0
    """Money, in the unit of price_in and price_out; 0: no limit."""
    then: Literal["stop", "use"] = "stop"
    """When the budget is spent: `stop` ends the run (exit code 3) and keeps the verdicts for the next run; `use`
    continues with the verdicts so far."""

    def check(self) -> None:
        """Raises InputError if `then` is set without a limit."""
        limited = bool(self.requests or self.tokens or self.money)
        self.counts_only_with("a limit (requests, tokens or money)", limited, "then")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(JudgeModel):
    """How judges are asked."""

    matters: ClassVar[tuple[str, ...]] = (
        "backend",
        "model",
        "base_url",
        "key_env",
        "judges",
        "rubric",
        "criterion",
        "constitution",
        "reasoning",
        "budget.money",
    )

    judges: tuple[JudgeModel, ...] = ()
    """Several judges that vote, each with its own options: `[{model = "a"}, {backend = "local", model = "b"}]`."""
    rubric: Literal["helpful", "harmless", "honest"] = "helpful"
    """What to judge by, unless a criterion or a constitution is given."""
    criterion: str = ""
    """What to judge by, in your own words."""
    constitution: str = ""
    """A text file with one principle per line (`#` for comments), or a TOML file with `principles = [...]`. One is
    drawn for each item (arXiv:2212.08073)."""
    reasoning: bool = False
    """Let the judge reason before its verdict: better and slower."""
    samples: Count = 1
    """Verdicts drawn for each question; the most frequent one counts (arXiv:2203.11171)."""
    concurrency: Count = 8
    """Concurrent requests to a server."""
    retry: RetryOptions = field(default_factory=RetryOptions)
    """What to do when a server doesn't answer: `retry.timeout = 30`."""
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    """What the judges may cost: `budget.requests = 1000`."""
    keep_replies: bool = False
    """Keep the judge's raw replies beside the verdicts; those without a verdict are always kept."""
    cache: str = "auto"
    """SQLite file of verdicts, so that no question is paid for twice; empty: none; auto: `verdicts.sqlite` in
    `run.cache`."""

    def check(self) -> None:
        """Raises InputError if a judge can't be asked, or options contradict each other."""
        if self.judges and (own := [one.name for one in fields(JudgeModel) if getattr(self, one.name) != one.default]):
            raise InputError("can't be combined with judges", where=own[0], fix="move it into judges")
        self.check_each(JudgeModel.check)
        self.check_each(self._check_reasons)
        on_server = any(judge.backend == "openai" for judge in self.panel)
        self.counts_only_with("backend = 'openai'", on_server, "concurrency", "retry", "budget", "keep_replies")
        if self.criterion and self.constitution:
            raise InputError("can't be combined with a constitution", where="criterion", fix="leave one of them out")
        if (self.criterion or self.constitution) and self.rubric != "helpful":
            other = "a criterion" if self.criterion else "a constitution"
            raise InputError(f"can't be combined with {other}", where="rubric", fix="leave one of them out")
        if self.constitution:
            principles_of(self.constitution)
        if self.samples > 1 and any(judge.temperature == 0 for judge in self.panel):
            raise InputError("all samples are the same at temperature 0", where="samples", fix="raise temperature")
        if self.samples > 1 and not self.reasoning and any(judge.backend == "local" for judge in self.panel):
            raise InputError("a local judge samples only its reasoning", where="samples", fix="set reasoning = true")
        if self.budget.money and not any(judge.price_in or judge.price_out for judge in self.panel):
            raise InputError("needs prices", where="budget.money", fix="set price_in and price_out")

    def check_each(self, check: Callable[[JudgeModel], None]) -> None:
        """Checks each judge. Raises the InputError of `check`, with the judge's place in `judges`."""
        for number, judge in enumerate(self.panel):
            try:
                check(judge)
            except InputError as error:
                where = f"judges.{number}.{error.where}" if self.judges else error.where
                raise InputError(error.what, where=where, fix=error.fix) from error

    def _check_reasons(self, judge: JudgeModel) -> None:
        """A local judge that does not reason samples nothing."""
        writes = self.reasoning or judge.backend != "local"
        judge.counts_only_with("reasoning = true", writes, "temperature", "reply_tokens")

    @property
    def panel(self) -> tuple[JudgeModel, ...]:
        """The judges: `judges`, or the one judge that these options describe."""
        return self.judges or (self,)


@dataclass(frozen=True, kw_only=True)
class JudgePreferenceOptions(JudgeOptions):
    """A language model ranks responses, sampled from the policy or taken from another source (arXiv:2306.05685)."""

    matters: ClassVar[tuple[str, ...]] = ("protocol", "k", *JudgeOptions.matters)

    protocol: Protocol = "pairwise"
    """`pairwise` compares two at a time and fits a ranking; `listwise` ranks all at once; `pointwise` scores each from
    1 to 10."""
    orders: Literal["both", "one"] = "both"
    """`both` asks each question in both orders, and different answers are a tie; `one` draws an order for each item."""
    responses: PreferencesSpec | None = None
    """Preference source of the responses to judge; its own ranks are hidden. None: k fresh samples of the policy."""
    k: Annotated[int, Interval(ge=2, le=9)] = 2
    """Responses sampled for each prompt; duplicates are dropped."""
    min_margin: Fraction = 0.05
    """Two responses tie if a local judge's probabilities for them differ by less than this, or if their scores differ
    by less than this share of the scale."""
    abstentions: Literal["drop", "keep"] = "drop"
    """Whether groups on which the judge abstained are dropped, or kept without ranks."""

    def check(self) -> None:
        """Raises InputError as in `JudgeOptions`, and for options that this protocol or source does not use."""
        super().check()
        scores = self.protocol == "pointwise"
        self.check_each(lambda judge: judge.counts_only_with("protocol = 'pointwise'", scores, "top_logprobs"))
        self.counts_only_with("protocol = 'pairwise' or 'listwise'", not scores, "orders")
        graded = scores or any(judge.backend == "local" for judge in self.panel)
        self.counts_only_with("backend = 'local' or protocol = 'pointwise'", graded, "min_margin")
        if self.responses is not None and self.k != 2:
            raise InputError("can't be combined with responses", where="k", fix="leave one of them out")


@dataclass(frozen=True, kw_only=True)
class JudgeRewardOptions(JudgeOptions):
    """A language model scores each response from 1 to 10; several judges' scores are averaged."""

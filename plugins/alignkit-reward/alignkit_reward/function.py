"""The reward source `function`: a plain function with the signature of TRL's reward functions.

`f(prompts, completions, **columns) -> list[float | None]`: strings, or lists of messages for conversational prompts;
each column of the prompts is a list with one entry per completion. Different from TRL: `completion_ids`,
`trainer_state`, `log_extra` and `log_metric` are not passed, because only text is scored; and a function without
`**kwargs` gets only the arguments it names.

One sampled text never ends a run: where the function raises for a response, or returns NaN or infinity, it abstains,
and a warning names the row.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from typing import TYPE_CHECKING, Any

from alignkit import InputError, PluginError, RewardSource, load_function
from alignkit.ops import is_out_of_memory
from alignkit_reward.options import FunctionOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from alignkit import Context, Group, Message, Prompt

    Row = tuple[Prompt, str, Message | None]

logger = logging.getLogger(__name__)
RESERVED = ("prompt", "prompts", "completion", "completions", "completion_ids")


class FunctionReward(RewardSource[FunctionOptions]):
    """A user's function, called once for all responses."""

    def __init__(self, config: FunctionOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._function = load_function(config.function)
        self._parameters = _parameters(self._function)

    @classmethod
    def try_records(cls, config: FunctionOptions, records: Iterable[tuple[str, Group]]) -> None:
        """Looks for the columns that the function can't do without."""
        needed = _required(_parameters(load_function(config.function)))
        for place, group in records:
            if missing := [name for name in needed if name not in group.prompt.meta]:
                raise InputError(
                    _lacks(config.function, missing[0], group.prompt.meta),
                    where=place,
                    fix=_fix(missing[0]),
                )

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The function's scores; None where it gives no finite number.

        Raises:
            PluginError: it scores no response, or returns anything but one number or None per response.
        """
        rows = [
            (group.prompt, response, turn)
            for group in groups
            for response, turn in zip(group.responses, _turns(group), strict=True)
        ]
        if not rows:
            return []
        failures: list[str] = []
        scores = iter(self._scores(rows, failures))
        if len(failures) == len(rows):
            raise PluginError(failures[0])
        if failures:
            logger.warning("no score for %d of %d responses: %s", len(failures), len(rows), failures[0])
        return [[next(scores) for _ in group.responses] for group in groups]

    def _scores(self, rows: Sequence[Row], failures: list[str]) -> list[float | None]:
        """The scores of all rows together; if the function raises, of each row alone."""
        arguments = self._wanted(_arguments(rows))
        try:
            result = self._function(**arguments)
            result = asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(rows) > 1:
                return [score for row in rows for score in self._scores([row], failures)]
            raised = f"{type(error).__name__}: {error}"
            failures.append(f"{self.config.function} raised {raised} ({_describe(rows[0])})")
            return [None]
        return self._checked(result, rows, failures)

    def _wanted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the function takes; all if it has `**kwargs`."""
        for name in _required(self._parameters):
            if name not in arguments:
                lacks = _lacks(self.config.function, name, arguments.keys() - {"prompts", "completions"})
                raise PluginError(f"{lacks}: {_fix(name)}")
        if not self._parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters):
            return arguments
        names = {parameter.name for parameter in self._parameters}
        return {name: value for name, value in arguments.items() if name in names}

    def _checked(self, result: Any, rows: Sequence[Row], failures: list[str]) -> list[float | None]:
        name = self.config.function
        values = result.tolist() if hasattr(result, "tolist") else result
        if not isinstance(values, list | tuple):
            raise PluginError(f"{name} returned {type(result).__name__}, not a list of {len(rows)} numbers")
        if len(values) != len(rows):
            raise PluginError(f"{name} returned {len(values)} rewards for {len(rows)} responses")
        return [self._number(value, row, failures) for value, row in zip(values, rows, strict=True)]

    def _number(self, value: Any, row: Row, failures: list[str]) -> float | None:
        if value is None:
            return None
        said = f"{self.config.function} returned {value!r}, not a finite number, for {_describe(row)}"
        try:
            number = None if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            number = None
        if number is None:
            raise PluginError(said)
        if math.isfinite(number):
            return number
        failures.append(said)
        return None


def _arguments(rows: Sequence[Row]) -> dict[str, Any]:
    """Prompts, completions and the columns, each with one entry per response."""
    columns = dict.fromkeys(key for prompt, *_ in rows for key in prompt.meta if key not in RESERVED)
    return {
        **{key: [prompt.meta.get(key) for prompt, *_ in rows] for key in columns},
        "prompts": [prompt.content for prompt, *_ in rows],
        "completions": [
            response if prompt.messages is None else [turn or {"role": "assistant", "content": response}]
            for prompt, response, turn in rows
        ],
    }


def _turns(group: Group) -> Sequence[Message | None]:
    """The messages of the responses that are more than text."""
    return group.meta.get("turns") or [None] * len(group.responses)


def _parameters(function: Any) -> list[inspect.Parameter]:
    """The parameters of the function; none for a builtin without a signature."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return []


def _required(parameters: Sequence[inspect.Parameter]) -> list[str]:
    """The names of the columns without which the function can't be called."""
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.default is parameter.empty
        and parameter.name not in ("prompts", "completions")
    ]


def _lacks(function: str, name: str, columns: Collection[str]) -> str:
    return f"{function} needs {name!r}, which is not a column of the prompts ({', '.join(sorted(columns)) or 'none'})"


def _fix(name: str) -> str:
    return f"add or rename a column, or give the parameter a default: {name}=None"


async def _awaited(result: Any) -> Any:
    return await result


def _describe(row: Row) -> str:
    prompt, response, _ = row
    return f"the row with prompt {prompt.plain[-60:]!r}, response {response[:60]!r}"

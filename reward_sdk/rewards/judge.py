"""What a language model counts when it compares a report with its reference.

A server with OpenAI's interface, such as `vllm serve`, is asked once for each pair, and answers in
a JSON schema: how many findings match, and how many errors there are of six categories, each apart
by whether they are clinically significant. The categories are those of ReXVal that GREEN
(Ostmeier et al., 2024, arXiv 2405.03595) counts. The score is never asked for; it is GREEN's:

    matched / (matched + significant errors), and 0 where nothing matches

but for one case. Where there is nothing to match and no error of either kind, as between two normal
reports, the score is 1, as `findings_f1` has it; GREEN gives 0, by which a normal study tells a
normal report from no other. Insignificant errors cost nothing beside a match.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import weakref
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from math import isfinite
from pathlib import Path
from threading import Lock, Thread
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from reward_sdk.errors import ConfigError, ScoringError, exhausted, explain, one_line, plain
from reward_sdk.http import certificates, clean_token, is_url, retry_after, shown_url
from reward_sdk.registry import reward
from reward_sdk.types import Evidence, Outcome, Sample

_PROMPT = Path(__file__).with_name("judge.txt")  # ours
_SCHEMA = Path(__file__).with_name("judge.json")  # ours: counts up to 20, so that an answer ends
_FIRST, _LONGEST = 0.5, 8.0  # ours: seconds until a server that failed is asked again
_CACHED = 1 << 14  # ours: answers that are kept; with their texts about 30 MB

T = TypeVar("T")
Count = Annotated[int, Field(strict=True, ge=0, le=1000)]  # ours: more is no count


class Errors(BaseModel):
    """How many errors of each category a report has."""

    false_finding: Count
    missing_finding: Count
    wrong_location: Count
    wrong_severity: Count
    false_comparison: Count
    missing_comparison: Count


class Counts(BaseModel):
    """What an answer must hold, and all of it that is checked: whatever else is in it, such as a
    rationale, is not read."""

    matched_findings: Count
    significant_errors: Errors
    insignificant_errors: Errors

    @property
    def score(self) -> float:
        """The score of these counts, in [0, 1]; see above."""
        significant = sum(self.significant_errors.model_dump().values())
        if self.matched_findings:
            return self.matched_findings / (self.matched_findings + significant)
        return float(not significant and not any(self.insignificant_errors.model_dump().values()))


class Judge:
    """The reward `judge`. Thread-safe; no pair of texts is judged twice while it is remembered,
    nor twice at a time, and a failure is not remembered.

    Args:
        url: base address of the server, such as "http://127.0.0.1:8000/v1".
        model: the name by which the server knows the model.
        template: the question, with {reference} and {report} where the texts shall stand.
        schema: JSON schema of an answer.
        concurrency: number of requests in flight at a time.
        timeout: seconds that one request may take.
        retries: how often a request comes again after a connection error, 429 or 5xx.
        max_tokens: tokens of an answer.
        key: what the server wants as bearer token; None for nothing.
    """

    name = "judge"
    bounds = (0.0, 1.0)
    needs = frozenset({"report", "reference"})

    def __init__(
        self,
        url: str,
        model: str,
        template: str,
        schema: Mapping[str, Any],
        concurrency: int,
        timeout: float,
        retries: int,
        max_tokens: int,
        key: str | None,
    ) -> None:
        self._url, self._template = url, template
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._request = {
            "model": model,
            "temperature": 0,  # borrowed: GREEN, which decodes greedily
            "max_tokens": max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "counts", "schema": schema, "strict": True},
            },
        }
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._lock, self._process = Lock(), 0

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        found = self._run(self._all(samples))
        return [
            Outcome(None, "failed", str(one))
            if isinstance(one, ScoringError)
            else Outcome(one.score)
            for one in found
        ]

    def explain(self, sample: Sample) -> list[Evidence]:
        """What the model counts: the matches, and each category with an error.

        Raises:
            ScoringError: the model cannot be asked, or its answer is none.
        """
        [counts] = self._run(self._all([sample]))
        if isinstance(counts, ScoringError):
            raise counts
        insignificant = counts.insignificant_errors.model_dump()
        return [
            Evidence("matched findings", str(counts.matched_findings)),
            *(
                Evidence(
                    category.replace("_", " "),
                    f"{number} significant, {insignificant[category]} insignificant",
                    agrees=False if number else None,
                )
                for category, number in counts.significant_errors.model_dump().items()
                if number or insignificant[category]
            ),
        ]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine gives, in the loop that all calls share."""
        with self._lock:
            if self._process != os.getpid():  # the first call, or the first one in a fork
                self._process = os.getpid()
                self._start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._limit = asyncio.Semaphore(self._concurrency)
        self._http = httpx.AsyncClient(
            headers=self._headers,
            timeout=None,  # the whole request has one
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self._concurrency),
            verify=certificates(),
            trust_env=False,  # a proxy for the outer world is not the way to a node of the cluster
        )
        self._answers: OrderedDict[tuple[str, str], asyncio.Task[Counts]] = OrderedDict()

    async def _all(self, samples: Sequence[Sample]) -> list[Counts | ScoringError]:
        """The counts of each sample, or why there are none."""
        pairs = [(sample.reference or "", sample.report or "") for sample in samples]
        return await asyncio.gather(*(self._counts(pair) for pair in pairs))

    async def _counts(self, pair: tuple[str, str]) -> Counts | ScoringError:
        answer = self._answers.get(pair)
        if answer is None:
            answer = self._answers[pair] = asyncio.create_task(self._ask(*pair))
            if len(self._answers) > _CACHED:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(pair)
        try:
            return await answer
        except Exception as error:
            if self._answers.get(pair) is answer:
                del self._answers[pair]
            if not isinstance(error, ScoringError):
                raise
            return error

    async def _ask(self, reference: str, report: str) -> Counts:
        """What the model answers about a report; ScoringError if that is nothing of use."""
        texts = {"{reference}": reference, "{report}": report}
        # At once, so that what looks like a placeholder in a text stays what it is.
        question = re.sub("{reference}|{report}", lambda found: texts[found[0]], self._template)
        body = {**self._request, "messages": [{"role": "user", "content": question}]}
        response = await self._response(body)
        try:
            [choice] = response.json()["choices"]
            text, ended = choice["message"]["content"], choice["finish_reason"]
        except (ValueError, LookupError, TypeError):
            raise self._failed(
                "no chat completion: does the url belong to such a server?"
            ) from None
        if ended != "stop":
            what = f"the answer ended with {plain(str(ended))!r}, no whole JSON"
            limit = self._request["max_tokens"]
            raise self._failed(f"{what}: raise max_tokens, {limit}" if ended == "length" else what)
        if not isinstance(text, str):
            raise self._failed("the answer has no text")
        try:
            return Counts.model_validate_json(text)
        except ValidationError as error:
            problem = explain(error, values=False)
            raise self._failed(f"the answer does not fit the schema: {problem}") from None

    async def _response(self, body: Mapping[str, Any]) -> httpx.Response:
        """The server's answer, a good one; ScoringError if none comes."""
        for attempt in range(self._retries + 1):
            pause = 0.0
            try:
                async with self._limit, asyncio.timeout(self._timeout):
                    response = await self._http.post(f"{self._url}/chat/completions", json=body)
            except TimeoutError:  # asked again it would take as long
                hint = "raise timeout, or lower concurrency"
                raise self._failed(f"no answer within {self._timeout:g} s: {hint}") from None
            except httpx.TransportError as error:
                if out_of := exhausted(error):
                    raise out_of from error
                problem = f"{one_line(error)}: is the server up, and can it be reached from here?"
            else:
                if response.status_code == 200:
                    return response
                problem = f"{response.status_code} {_detail(response)}"
                if response.status_code != 429 and response.status_code < 500:
                    raise self._failed(problem)
                pause = retry_after(response, _LONGEST)
            if attempt < self._retries:
                own = random.uniform(0.5, 1.0) * min(_FIRST * 2**attempt, _LONGEST)
                await asyncio.sleep(max(pause, own))
        raise self._failed(f"{self._retries + 1} attempts; last: {problem}")

    def _failed(self, problem: str) -> ScoringError:
        return ScoringError(f"judge {self._url}: {problem}")


def _detail(response: httpx.Response) -> str:
    """What an error says, cut, for it may repeat the question."""
    try:
        return plain(str(response.json()["error"]["message"]))[:200]
    except (ValueError, LookupError, TypeError):
        said = plain(response.text)[:200]
        return f"{said}: is the url the base address of such a server? vLLM's ends in /v1"


def _read(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or a path that cannot be one
        raise ConfigError(f"{what}: {path} is not UTF-8 text: {error}") from None


def _read_template(path: str | Path) -> str:
    template = _read(path, "prompt")
    for field in ("{reference}", "{report}"):
        if field not in template:
            raise ConfigError(f"prompt: {path} has no {field}: write it where the text shall stand")
    return template


def _read_schema(path: str | Path) -> dict[str, Any]:
    try:
        schema = json.loads(_read(path, "schema"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"schema: {path} is not JSON: {error}") from None
    _check_schema(schema, Counts, f"schema: {path}: ")
    return schema


def _check_schema(schema: Any, counts: type[BaseModel], place: str) -> None:
    """ConfigError unless an answer in this schema must hold the counts."""
    for name, field in counts.model_fields.items():
        inner = field.annotation
        group = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
        kind = "object" if group else "integer"
        try:
            part, required = schema["properties"][name], name in schema["required"]
            fits = required and part["type"] == kind
        except (LookupError, TypeError):
            fits = False
        if not fits:
            raise ConfigError(
                f"{place}{name} must be one of the properties, of type {kind}, and required; "
                f"begin with a copy of {_SCHEMA}"
            )
        if group:
            _check_schema(part, group, f"{place}{name}.")


@reward("judge")
def judge(
    url: str,
    model: str,
    prompt: str | None = None,
    schema: str | None = None,
    concurrency: int = 16,  # ours
    timeout: float = 60.0,  # ours
    retries: int = 3,  # ours
    max_tokens: int = 512,  # ours: the counts have 340 characters
    api_key_env: str | None = None,
) -> Judge:
    """GREEN's formula over the findings and errors that a language model counts, in [0, 1].

    The server is asked when the first sample is scored, so it may come up later than the set.

    Args:
        url: base address of a server with OpenAI's interface, such as http://127.0.0.1:8000/v1.
        model: the name by which the server knows the model.
        prompt: file with the question, which has {reference} and {report} where the texts shall
            stand; by default `judge.txt` beside this module.
        schema: file with the JSON schema of an answer, which must have the counts and may have
            more, such as a rationale before them; by default `judge.json` beside this module.
        concurrency: number of requests in flight at a time, at least 1.
        timeout: seconds that one request may take, above 0; what takes longer has failed.
        retries: how often a request comes again after a connection error, 429 or 5xx, after half a
            second at first and at most 8; at least 0.
        max_tokens: tokens of an answer, at least 1.
        api_key_env: name of the environment variable that holds the server's API key.

    Raises:
        ConfigError: a setting is none, a file cannot be read, the prompt lacks a text or the schema
            a count, or the environment variable is not set.
    """
    if not is_url(url):
        raise ConfigError(f"url: {shown_url(url)}; write one such as http://127.0.0.1:8000/v1")
    for name, value, least in (
        ("concurrency", concurrency, 1), ("retries", retries, 0), ("max_tokens", max_tokens, 1),
    ):  # fmt: skip
        if value < least:
            raise ConfigError(f"{name}: {value} is none: write {least} or more")
    if not isfinite(timeout) or timeout <= 0:
        raise ConfigError(f"timeout: {timeout:g} s is none: write seconds, above 0")
    key = None
    if api_key_env is not None:
        if api_key_env not in os.environ:
            raise ConfigError(f"api_key_env: ${api_key_env} is not set: set it to the server's key")
        key = clean_token(os.environ[api_key_env], f"api_key_env: ${api_key_env}")
    return Judge(
        url.rstrip("/"),
        model,
        _read_template(prompt or _PROMPT),
        _read_schema(schema or _SCHEMA),
        concurrency,
        timeout,
        retries,
        max_tokens,
        key,
    )

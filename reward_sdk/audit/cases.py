"""Ranking cases: a reference, candidate reports, and how a radiologist ranks them.

The file is a JSON array in the format of RadJudge (github.com/rajpurkarlab/CRIMSON):

    [{"id": "1a", "category": "Location", "description": "A wrong side costs.",
      "reference": "Left pleural effusion.",
      "candidates": {
        "C1": {"text": "Left effusion.", "context": {"age": 70, "indication": "Cough."}},
        "C2": {"text": "Right effusion."}},
      "expected": ["C1 > C2"]}]

A candidate's text is a plain report. Its `context` may be left out, and either of its keys: `age`
in years, a number or its text, and `indication`, as `Sample` has them.

A case passes if all holds that is expected, by the tolerances of the edits: `A > B` if A scores
higher by more than 1e-9, as an edit that must lower is noticed; `A = B` if their scores differ by
no more than 0.02, as an edit that must not matter is tolerated. The range of a reward changes
neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_sdk.audit.edits import TOLERANCE
from reward_sdk.errors import ConfigError
from reward_sdk.text import wrap_report
from reward_sdk.types import Outcome, Sample


@dataclass(frozen=True)
class Expectation:
    """That one candidate scores higher than another (">"), or the same ("=").

    Attributes:
        first: name of the candidate before the sign.
        sign: ">" or "=".
        second: name of the candidate behind the sign.
    """

    first: str
    sign: str
    second: str

    def __str__(self) -> str:
        return f"{self.first} {self.sign} {self.second}"

    def holds(self, scores: Mapping[str, float]) -> bool:
        """Whether it is so by the candidates' scores."""
        gap = scores[self.first] - scores[self.second]
        if self.sign == ">":
            return gap > TOLERANCE["must lower"]
        return abs(gap) <= TOLERANCE["must not matter"]


@dataclass(frozen=True)
class RankingCase:
    """Reports of one study that a reward should rank as a radiologist does.

    Attributes:
        id: name of the case.
        category: what kind of judgement it asks for.
        description: what it asks for, in a sentence.
        candidates: name -> the sample to be scored; all have the same reference.
        expected: what must hold, all of it.
    """

    id: str
    category: str
    description: str
    candidates: Mapping[str, Sample]
    expected: tuple[Expectation, ...]


@dataclass(frozen=True)
class Ranking:
    """How one reward, or the total, ranked the candidates of one case.

    Attributes:
        scores: candidate -> its score; None where it failed or does not apply.
        passed: whether all holds that is expected; None if a candidate has no score.
        reason: why the first candidate without a score has none, its status before it; "" if all
            have one.
    """

    scores: dict[str, float | None]
    passed: bool | None
    reason: str


@dataclass(frozen=True)
class CaseResult:
    """How every reward, and the total, ranked the candidates of one case.

    Attributes:
        case: the case.
        rankings: reward name or "total" -> how that score ranked the candidates.
    """

    case: RankingCase
    rankings: dict[str, Ranking]


def rank(case: RankingCase, outcomes: Mapping[str, Outcome]) -> Ranking:
    """Compares the outcomes of a case's candidates, by their names, with what is expected."""
    scores: dict[str, float] = {}
    reasons = []
    for name, outcome in outcomes.items():
        # a value for failures is no judgement
        if outcome.status == "failed" or outcome.value is None:
            reasons.append(f"{outcome.status.replace('_', ' ')}: {outcome.reason}")
        else:
            scores[name] = outcome.value
    return Ranking(
        scores={name: scores.get(name) for name in outcomes},
        passed=None if reasons else all(expected.holds(scores) for expected in case.expected),
        reason=reasons[0] if reasons else "",
    )


def read_cases(path: str | Path) -> list[RankingCase]:
    """The ranking cases of a file.

    Raises:
        ConfigError: the file cannot be read, holds no case, or one is wrong; says which and what.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read cases {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cases {path}: no JSON: {error}") from None
    if not isinstance(content, list) or not content:
        raise ConfigError(f"cases {path}: the file is a JSON array of at least one case")
    cases: dict[str, RankingCase] = {}
    for number, entry in enumerate(content, 1):
        try:
            case = _case(entry)
            if case.id in cases:
                raise ConfigError("an earlier case has the same id")
        except ConfigError as error:
            named = isinstance(entry, dict) and entry.get("id")
            which = f"{number} ({named!r})" if named else str(number)
            raise ConfigError(f"cases {path}: case {which}: {error}") from None
        cases[case.id] = case
    return [*cases.values()]


def _case(entry: Any) -> RankingCase:
    entry = _object(entry, "a case")
    name, category, description, reference = (
        _text(entry, key) for key in ("id", "category", "description", "reference")
    )
    candidates = {
        candidate: _candidate(content, reference, f"{name} {candidate}", f"candidate {candidate!r}")
        for candidate, content in _object(entry.get("candidates"), "'candidates'").items()
    }
    expected = entry.get("expected")
    if not isinstance(expected, list) or not expected:
        raise ConfigError("'expected' is a list of at least one text such as 'C1 > C2'")
    return RankingCase(
        name,
        category,
        description,
        candidates,
        tuple(_expectation(text, candidates) for text in expected),
    )


def _candidate(content: Any, reference: str, name: str, where: str) -> Sample:
    content = _object(content, where)
    try:
        report = _text(content, "text")
        context = _object(content.get("context") or {}, "'context'")
        if other := context.keys() - {"age", "indication"}:
            raise ConfigError(f"'context' has {sorted(other)[0]!r}: it takes age and indication")
        age, indication = context.get("age"), context.get("indication")
        sample = Sample(wrap_report(report), reference, id=name, age=age, indication=indication)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
    if sample.report is None or sample.reference is None:
        what = "text" if sample.report is None else "case's reference"
        raise ConfigError(f"{where}: its {what} is a plain report, without tags")
    return sample


def _expectation(text: Any, candidates: Mapping[str, Sample]) -> Expectation:
    parts = re.fullmatch(r"\s*([^<>=]*[^<>=\s])\s*([>=])\s*([^<>=]*[^<>=\s])\s*", str(text))
    if parts is None:
        raise ConfigError(f"an expectation reads 'C1 > C2' or 'C1 = C2', not {text!r}")
    expected = Expectation(*parts.groups())
    for name in (expected.first, expected.second):
        if name not in candidates:
            raise ConfigError(
                f"expectation {text!r} names no candidate: {name!r} is none of "
                f"{', '.join(candidates) or 'no'}"
            )
    return expected


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is a JSON object, not {value!r}")
    return value


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key!r} is a text that is not blank, not {value!r}")
    return value

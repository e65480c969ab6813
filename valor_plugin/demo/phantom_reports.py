"""Reports for phantoms, put together from sentences that radiologists wrote.

The sentences come from the 3,955 Indiana University reports (Demner-Fushman et al., 2016) that
the torchxrayvision wheel carries under CC BY-NC-ND. They are read from the installed package when
a bank is made, and nothing made of them is kept. Only short and common sentences are taken, few
of each kind, because a model of two million parameters has to learn them within minutes.

Two adaptations, because abnormal films are rare in that collection:

* Sentences about one side serve the other side too, with "left" and "right" exchanged.
* The collection hardly says "consolidation" of a film that has one; sentences about a sided
  infiltrate, pneumonia or airspace disease are taken with the noun replaced.

Words for size ("small", "mild") are kept as they stand; they do not measure what is drawn.
Every number in this file is our choice.
"""

from __future__ import annotations

import html
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np

from reward_sdk.errors import ConfigError
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.text import sentences
from valor_plugin.demo.phantoms import DRAWABLE, OBSERVATION_OF, Finding

Item = TypeVar("Item")

WORDINGS = 4
"""How many sentences at most say the same thing."""
MIN_COUNT = 100
"""How often the collection must deny a set of observations for the bank to do so."""
MAX_WORDS = 9
"""The longest sentence of a bank."""
MAX_REPORT_WORDS = 40

_SECTION = re.compile(
    r'<AbstractText Label="(?:FINDINGS|IMPRESSION)">(.*?)</AbstractText>', re.DOTALL
)
# Anonymised words, numbers, slips of punctuation, and comparisons with phantoms nobody drew.
_UNCLEAN = re.compile(
    r"XXXX|\d|/|\. |\b(?:stable|unchanged|again|prior|previous\w*|compar\w+|interval|new|remain\w*"
    r"|persist\w*|residual|recurren\w+|improv\w+|worsening|resol\w+|increas\w+|decreas\w+"
    r"|clearing|develop\w+|redemonstrat\w+|chronic|otherwise|associated|adjacent|remov\w+)\b",
    re.IGNORECASE,
)
# In a sentence that states one finding: what else it would state, deny or place, and misprints.
_BESIDES = re.compile(
    r"\b(?:no|without|normal|and|or|versus|bi\w+|both|bases|upper|middle|mid|midlung|lingul\w+"
    r"|perihilar|retrocardiac|anterior|posterior\w*|hemothorax|\w*diaphragms?|failure|tissue"
    r"|hypertension|subpleural|scar\w*|loculat\w+|hernia|inflammatory|nodul\w+|large|acute|low|show"
    r"|multifocal|the present|nonconsolidating|consistent|compatible|suspicious|suggest\w*)\b",
    re.IGNORECASE,
)
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_AIRSPACE = re.compile(r"\b(?:infiltrate|pneumonia|air ?space disease)(?=\W|$)", re.IGNORECASE)
_PACEMAKER = re.compile(r"pacemaker|defibrillator", re.IGNORECASE)  # the one device drawn
# In a denial: what labelers do not label, and what phantoms do not show.
_BESIDES_DENIAL = re.compile(
    r"vascul|bon[ey]|osseous|pleural spaces|calcif|emphysema|congest|CHF|upper limits|effusion of",
    re.IGNORECASE,
)
_NORMAL = re.compile(
    r"no (?:evidence of )?(?:acute|active) (?:\w+ )*(?:disease|cardiopulmonary \w+)\.|normal chest",
    re.IGNORECASE,
)
_RULES_OUT = {
    "Enlarged Cardiomediastinum": {"Cardiomegaly"},
    "Pneumonia": {"Consolidation"},
    "Lung Opacity": {
        "Consolidation", "Edema", "Atelectasis", "Pleural Effusion", "Pneumothorax"
    },
}  # fmt: skip
"""Observations that are not drawn, and what must be absent for their denial to be true: clear
lungs are lungs without any of these."""


def iu_xray_sentences() -> Counter[str]:
    """The sentences of the IU X-ray reports in torchxrayvision's wheel, and how often each occurs.

    Raises:
        ConfigError: torchxrayvision, or the archive within it, is not there.
    """
    package = find_spec("torchxrayvision")  # found, not imported: importing it takes seconds
    if package is None or package.origin is None:
        raise ConfigError("phantom reports need the reports in torchxrayvision: install it")
    archive = Path(package.origin).parent / "data" / "NLMCXR_reports.tgz"
    if not archive.is_file():
        raise ConfigError(f"{archive} is missing: install torchxrayvision 1.4 or later")
    counts: Counter[str] = Counter()
    with tarfile.open(archive, "r|gz") as reports:
        for member in reports:
            if member.name.endswith(".xml") and (file := reports.extractfile(member)):
                for section in _SECTION.findall(file.read().decode()):
                    for sentence in sentences(html.unescape(section)):
                        counts[sentence.rstrip(" .") + "."] += 1
    return counts


class SentenceBank:
    """Sentences by what they state or deny, and reports made of them."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Files the usable sentences.

        Args:
            counts: sentence -> how often it occurs; see `iu_xray_sentences`.

        Raises:
            ConfigError: there is no sentence for a finding, or none for normal phantoms.
        """
        clean = {
            sentence: count
            for sentence, count in counts.items()
            if len(sentence.split()) <= MAX_WORDS and not _UNCLEAN.search(sentence)
        }
        stated: dict[Finding, Counter[str]] = {finding: Counter() for finding in DRAWABLE}
        denied: dict[frozenset[str], Counter[str]] = defaultdict(Counter)
        normal: Counter[str] = Counter()
        deniable = set(OBSERVATION_OF.values()) | _RULES_OUT.keys()
        for sentence, labels in zip(clean, _labels(clean), strict=True):
            count = clean[sentence]
            if not labels and _NORMAL.match(sentence):
                normal[sentence] += count
            elif _BESIDES_DENIAL.search(sentence):
                continue
            elif set(labels.values()) == {0} and labels.keys() <= deniable:
                denied[frozenset(labels)][sentence] += count
        adapted: Counter[str] = Counter()
        for sentence, count in clean.items():
            if not _BESIDES.search(sentence):
                adapted[_AIRSPACE.sub("consolidation", sentence)] += count
        for sentence, labels in zip(adapted, _labels(adapted), strict=True):
            sided = {side.lower() for side in _SIDE.findall(sentence)}
            for finding, observation in OBSERVATION_OF.items():
                side = finding.partition("_")[2]
                if labels != {observation: 1} or len(sided) != bool(side):
                    continue
                if finding != "device" or _PACEMAKER.search(sentence):
                    wording = sentence if not side or side in sided else mirrored(sentence)
                    stated[finding][wording] += adapted[sentence]
        self.states = {finding: _common(found) for finding, found in stated.items()}
        """Finding -> sentences that state it and nothing else -> weight."""
        self.denies = {
            what: _common(found) for what, found in denied.items() if found.total() >= MIN_COUNT
        }
        """Observations -> sentences that deny all of them and nothing else -> weight."""
        self.normal = _common(normal)
        """Sentences that are true of normal phantoms only -> weight."""
        if missing := [name for name, found in stated.items() if not found]:
            raise ConfigError(f"no sentence states {', '.join(missing)}: give more reports")
        if not self.normal or not self.denies:
            raise ConfigError("no sentence describes a normal phantom: give more reports")

    def report(self, findings: Collection[Finding], rng: np.random.Generator) -> str:
        """States every finding, denies two or three others (three or four if there are none).

        What is denied is absent on both sides. Sentences stand in random order.

        Args:
            findings: findings that the phantom shows.
            rng: random generator, which the call advances.

        Returns:
            A report of `MAX_REPORT_WORDS` words at most, without tags.
        """
        chosen = [_draw(self.states[finding], rng) for finding in DRAWABLE if finding in findings]
        wanted = len(chosen) + int(rng.integers(2, 4)) + (not chosen)
        if not chosen and rng.random() < 0.7:
            chosen.append(_draw(self.normal, rng))
        present = {OBSERVATION_OF[finding] for finding in findings}
        said: set[str] = set()
        while len(chosen) < wanted:
            open_ = {
                what: sum(wordings.values())
                for what, wordings in self.denies.items()
                if not what & said
                and not any(({name} | _RULES_OUT.get(name, set())) & present for name in what)
            }
            if not open_:
                break
            what = _draw(open_, rng)
            said |= what
            sentence = _draw(self.denies[what], rng)
            if len(" ".join([*chosen, sentence]).split()) > MAX_REPORT_WORDS:
                break
            chosen.append(sentence)
        return " ".join(chosen[i] for i in rng.permutation(len(chosen)))


def _labels(texts: Collection[str]) -> list[dict[str, int]]:
    """What each sentence says of the 13 findings, blanks left out."""
    return [
        {name: label for name, label in one.items() if label is not None and name != "No Finding"}
        for one in label_reports(list(texts))
    ]


def mirrored(sentence: str) -> str:
    """The sentence about the other side."""
    other = {"left": "right", "Left": "Right", "right": "left", "Right": "Left"}
    return _SIDE.sub(lambda side: other[side[0]], sentence)


def _common(counts: Counter[str]) -> dict[str, float]:
    """The most frequent wordings; weights are square roots, so that rare ones are heard too."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], _SIDE.sub("", item[0])))
    return {sentence: count**0.5 for sentence, count in ranked[:WORDINGS]}


def _draw(weights: Mapping[Item, float], rng: np.random.Generator) -> Item:
    """One of the keys, with probability proportional to its weight."""
    items = list(weights)
    share = np.fromiter(weights.values(), float)
    return items[rng.choice(len(items), p=share / share.sum())]

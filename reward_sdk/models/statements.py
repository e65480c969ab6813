"""A report as statements: what stands between two full stops, in one item of a list or on one line,
in lower case, with short forms spelled out and frequent misspellings mended.

Reports come as prose, wrapped at some column or not, as lists, as forms ("Heart: enlarged"), with
capitals and, in the R2Gen convention, without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import TypeVar

# ours: words, and characters, that are read together. No sentence has so many, but a policy that
# repeats itself writes thousands, and the time grows with their square.
_LONGEST, _WIDEST = 200, 2000


T = TypeVar("T")
_SHORT = 300  # ours: characters; longer statements hardly recur, and thousands of them fill memory


def remembered(read: Callable[[str], T]) -> Callable[[str], T]:
    """The function, whose results for short statements are kept: reports are made of sentences that
    recur."""
    kept = lru_cache(maxsize=1 << 16)(read)  # ours

    @wraps(read)
    def recalled(statement: str) -> T:
        return kept(statement) if len(statement) <= _SHORT else read(statement)

    return recalled


def statements(text: str) -> Iterator[str]:
    """The statements of a report, those that are too long in pieces. Why and how the film was made,
    as it stands behind headings such as INDICATION and TECHNIQUE, is none of them.

    A line break ends a statement unless the line goes on: the next one begins with a small letter
    or with "and" and its like, or this one ends with a word that wants another.

    >>> list(statements("No PTX\\nL effusion"))
    ['no pneumothorax', 'left effusion']
    """
    text = _QUOTE.sub("'", text)
    if "<" in text:
        text = _TAG.sub("\n", text)
    if "**" in text or "__" in text:
        text = _BOLD.sub(r"\n\n\1: ", text)
    lines = _unwrapped(text) if "\n" in text else [text]
    for line in lines:
        if ":" in line:
            line = _without_aside(line, alone=len(lines) == 1)
        if item := ITEM.match(line):
            line = line[item.end() :]
            line = line.replace(" - ", "\n") if item[0][0] == "-" else line
        if line.count(":") > 1:
            line = _HEAD.sub(r"\n\g<0>", line)
        for part in _END.split(line):
            yield from _pieces(part)


_QUOTE = re.compile("[\u2018\u2019\u02bc]")
_TAG = re.compile(r"</?(?:br|li|p|ul|ol|div|b|strong) ?/?>", re.IGNORECASE)
_BOLD = re.compile(r"(?:\*\*|__)\s*([^*_\n]{1,60}?)\s*:?\s*(?:\*\*|__)\s*:?")
_ASIDE = re.compile(
    r"[ \t*#]*(?:(?P<why>indications?|clinical (?:indication|information|history|data|details)"
    r"|history|reason for (?:the )?(?:exam(?:ination)?|study))|techniques?|comparisons?"
    r"|exam(?:ination)?|procedure|wet read|notification)[ *]*:",
    re.IGNORECASE,
)
_BODY = re.compile(
    r"\b(?:findings?|impressions?|conclusions?|results?|opinion|addendum)\b[^:.]{0,20}:",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?](?:\s+|$)")


def _without_aside(line: str, alone: bool) -> str:
    """A line without what a heading such as INDICATION or TECHNIQUE names: up to the next heading
    of the report itself, else all of an indication that is not the whole text, else one sentence.
    """
    if not (aside := _ASIDE.match(line)):
        return line
    if body := _BODY.search(line, aside.end()):
        return line[body.start() :]
    end = None if aside["why"] and not alone else _SENTENCE.search(line, aside.end())
    return line[end.end() :] if end else ""


ITEM = re.compile(
    r"(?:[-*\u2022\u2013\u2014\u00b7+>]+|\(?(?:\d{1,2}|[a-z])[.)]|#+ ?\d*[.):]?)\s+"
    r"|\d{1,2}[.)-](?=[A-Z])"
)
"""What begins an item of a list, at the start of a line: a dash, a bullet, a number or a letter."""

# What ends a statement within a line: a stop or an item; and headings, where there are several
# ("Lungs: clear Heart: large").
_END = re.compile(
    r"[.!;\n\u2022| ](?:(?<=[;\n\u2022|])|(?<=[.!])(?=\s|$)(?<!\bvs.)(?<!\bapprox.)"
    r"|(?<= )(?:--|/) (?=[A-Za-z])|(?<= )\d{1,2}[.-](?=[A-Za-z]{2})"
    r"|(?<=[a-z]{2}\.)(?=[A-Za-z]{2})|(?<=\w\? )"
    r"|(?<= )(?:\d{1,2}\)|#\d{1,2}[.):]?)(?=\s?[A-Za-z]))"
)
_HEAD = re.compile(
    r"(?:^|(?<=[a-z)] ))[A-Z][\w-]*(?: (?:and|&|/|of|[A-Z][\w-]*))*(?: [a-z][\w-]*){0,2}:(?!\d)"
    r"|\b(?:lungs?|heart|pleura|mediastinum|bones):"
)

WANTS_MORE = re.compile(
    r"(?:[,:(/&-]|\b(?:an?|the|and|or|nor|but|no|not|without|with|of|in|on|at|to|for|from|by|as|than"
    r"|is|are|was|were|be|been|has|have|may|might|could|can|likely|possibl[ey]|probabl[ey]|into"
    r"|this|that|which|these|there|left|right|bilateral|small|mild|moderate|large|new|versus|vs\.?"
    r"|pleural|pulmonary|lower|upper|middle|focal|acute|evidence|due|secondary|represent|exclude))$",
    re.IGNORECASE,
)
"""The end of a line that does not end a statement."""

_GOES_ON = re.compile(
    r"(?:[,)]|(?:and|or|nor|but|with|without|in|of|on|at|to|for|from|by|as|than|is|are|was|were|be"
    r"|been|has|have|which|that|may|might|could|versus|not)\b)"
)
_NARROW = 50  # ours: characters; where the longest line is shorter, nobody has wrapped


def _unwrapped(text: str) -> list[str]:
    """The lines, each with those that it goes on in."""
    found: list[str] = []
    lines = [line.strip() for line in text.split("\n")]
    width = max(map(len, lines))
    letters = text.lstrip(" \n\t-*#0123456789.()")
    cased = letters[:1].isupper() and not letters.isupper()
    before = ""
    for line in lines:
        if before and _goes_on(before, line, width, cased):
            found[-1] += f" {line}"
        elif line:
            found.append(line)
        before = line
    return found


def _goes_on(before: str, line: str, width: int, cased: bool) -> bool:
    """Whether a line continues the one before."""
    if not line or before[-1] in ".;!?" or ITEM.match(line):
        return False
    if WANTS_MORE.search(before) or _GOES_ON.match(line):
        return True
    word = line.split(None, 1)[0]
    if cased and word[0].isupper() and not word.isupper():
        return False
    if cased and word[0].islower():
        return True
    return width >= _NARROW and len(before) + 1 + len(word) > width


_FORMS = {
    # negation and certainty
    "w/o": "without", "neg": "negative", "isn't": "is not", "wasn't": "was not",
    "aren't": "are not", "weren't": "were not", "doesn't": "does not", "don't": "do not",
    "didn't": "did not", "hasn't": "has not", "haven't": "have not", "can't": "cannot",
    "couldn't": "could not", "isnt": "is not", "wasnt": "was not", "arent": "are not",
    "doesnt": "does not", "r/o": "rule out", "poss": "possible", "prob": "probable",
    "unlikley": "unlikely", "likley": "likely", "wnl": "within normal limits", "nl": "normal",
    # other small words
    "c/w": "consistent with", "s/p": "status post", "c/f": "concern for", "h/o": "history of",
    "hx": "history",
    "d/t": "due to", "b/l": "bilateral", "bilat": "bilateral",
    "mod": "moderate", "sm": "small", "l": "left", "r": "right", "lt": "left", "rt": "right",
    # places
    "lll": "left lower lobe", "lul": "left upper lobe", "rll": "right lower lobe",
    "rml": "right middle lobe", "rul": "right upper lobe", "bibasal": "bibasilar",
    "basal": "basilar", "cp": "costophrenic", "cpa": "costophrenic angle",
    # findings
    "eff": "effusion", "effs": "effusions", "opac": "opacity", "vasc": "vascular",
    "ptx": "pneumothorax", "pna": "pneumonia", "oedema": "edema", "oedematous": "edematous",
    "ggo": "ground glass opacity", "ggos": "ground glass opacities", "atx": "atelectasis",
    "ild": "interstitial lung disease", "fx": "fracture", "fxs": "fractures", "edma": "edema",
    "edeama": "edema", "edmea": "edema", "nodual": "nodule", "nodlue": "nodule",
    # devices
    "ett": "endotracheal tube", "ngt": "nasogastric tube", "ogt": "orogastric tube",
    "dht": "dobbhoff tube", "cvl": "central venous line", "cvc": "central venous catheter",
}  # fmt: skip
# Long words that misspellings are measured against, and those of ours that are near them.
_SPELLED = [
    "pneumothorax", "pneumothoraces", "hydropneumothorax", "hemopneumothorax",
    "hemothorax", "hemothoraces", "hydrothorax", "atelectasis", "atelectases", "hemithorax",
    "hemithoraces", "cardiomegaly", "consolidation", "consolidations",
    "pneumonia", "pneumonias", "effusion", "effusions", "opacity", "opacities",
    "opacification", "infiltrate", "infiltrates", "fracture", "fractures",
    "fractured", "congestion", "enlarged", "enlargement", "mediastinum",
    "mediastinal", "cardiomediastinal", "silhouette", "costophrenic", "catheter",
    "catheters", "pacemaker", "endotracheal", "nasogastric", "interstitial",
    "emphysema", "fibrosis", "scarring", "thickening", "calcified", "bilateral",
    "unremarkable", "pulmonary", "collapse", "collapsed", "bibasilar",
]  # fmt: skip


def _without_a_letter(word: str) -> list[str]:
    """The word, and what is left of it without any one letter but the first."""
    return [word, *(word[:i] + word[i + 1 :] for i in range(1, len(word)))]


_SHORTEST, _LONGEST_WORD = 7, 20  # ours: letters of a word that is looked at for a wrong one
_NEAR = {piece: word for word in _SPELLED for piece in _without_a_letter(word)}
_NEAR |= {word: word for word in _SPELLED}


def _mended(word: str) -> str:
    """The word that this one is a misspelling of: by one letter too few, too many or wrong, or two
    that have changed places. Itself if of none. Its first letter must be right."""
    return next((_NEAR[piece] for piece in _without_a_letter(word) if piece in _NEAR), word)


_WORD = re.compile(r"[a-z][a-z0-9]*(?:'[a-z]+|/[a-z]\b)?")
_ASKED_BEFORE = re.compile(r"(?:^|(?<=[\s(:,]))\?\s*(?=\w)|\+/-\s*(?=\w)")
_ASKED_AFTER = re.compile(r"(?<=[\w):])\s?\?")
_COMMA = re.compile(r"(?<=[a-z]),(?=[a-z])")
_GREATER = re.compile(r"\b(l|r|left|right) ?> ?(l|r|left|right)\b")


@lru_cache(maxsize=1 << 14)  # ours: far more words than reports use
def _form(word: str) -> str:
    return _FORMS.get(word) or (_mended(word) if _SHORTEST <= len(word) <= _LONGEST_WORD else word)


@remembered
def _pieces(part: str) -> tuple[str, ...]:
    """A statement in lower case with its short forms spelled out, in pieces if it is too long."""
    words = part.lower().split()
    if len(words) > _LONGEST:
        return tuple(
            piece
            for i in range(0, len(words), _LONGEST)
            for piece in _pieces(" ".join(words[i : i + _LONGEST]))
        )
    text = _spelled_out(" ".join(words))
    return tuple(text[j : j + _WIDEST] for j in range(0, len(text), _WIDEST))


def _spelled_out(statement: str) -> str:
    if "w/" in statement:
        statement = re.sub(r"\bw/ ?(?!o\b)", "with ", statement)
    if "?" in statement or "+/-" in statement:
        statement = _ASKED_BEFORE.sub("possible ", statement)
        statement = _ASKED_AFTER.sub(" is possible", statement)
    if "," in statement:
        statement = _COMMA.sub(", ", statement)
    if ">" in statement:
        statement = _GREATER.sub(r"\1 greater than \2", statement)
    if ":" in statement or "=" in statement:  # as forms have them
        statement = re.sub(r"(?<=[a-z)]) ?[:=] ?", ": ", statement)
    return _WORD.sub(lambda word: _form(word[0]), statement)

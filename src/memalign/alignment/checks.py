"""What no guideline may be, whatever a model proposes: each check is a pure function and gives a reason, or None."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST_COPY = 8
"""Words in a row that a guideline may share with a case; of Chinese, Japanese or Korean, twice as many characters."""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")

_VERB = (
    r"(?:answer|say|reply|respond|decide|return|choose|give|rate|grade|label|mark|output|select|pick|judge|score|assign|vote|accept|count|go|treat|classify|consider)"
    r"(?:s|ing)?(?:\s+(?:it|this|them|everything|all|with|as|for|is|the|reply|replies|answer|verdict|label|score|a|an|to|be))*"
)
_ALWAYS = r"(?:always|never|in (?:all|any|every) cases?|every time|no matter what|regardless of \w+(?: \w+)?|without exception)"
_EVERYTHING = r"(?:everything|anything|all|(?:every|each|any)\s+(?:reply|answer|response|output|text|item|case))"
_ELSEWHERE = "toujours|jamais|immer|niemals|siempre|nunca|sempre|всегда|никогда|总是|始终|永远|一律|总应|دائما|دائمًا|أبدا|いつも|常に|항상"
"""Always and never in other languages that experts write in."""
_QUOTE = r"[\"'`“”‘’«»「」]*"
_CLAUSE_ENDS = (
    r"(?=[\"'`“”‘’«»「」]*\s*(?:[.,;:!?)。，；！]|because\b|since\b|whatever\b|always\b|in (?:all|any|every)\b|regardless\b|no matter\b|\Z))"
)
_EVERYTHING = (
    r"(?:everything|anything|(?:all|any|every|each)(?: of (?:the|these|them))?"
    r"(?: (?:\w+ )?(?:repl(?:y|ies)|answers?|responses?|outputs?|texts?|items?|cases?|messages?|conversations?|pairs?|one))?)"
)
_SENTENCE_ENDS = r"(?=[\"'`“”‘’«»「」]*\s*(?:[.;!?)。！]|,?\s*(?:because|since|whatever|regardless|no matter)\b|\Z))"
"""Where no condition follows: "every reply is poor, unless it names a date" is a principle."""
_YES_NO_ELSEWHERE = ("oui", "non", "ja", "nein", "sí", "da", "是", "否", "نعم", "لا", "はい", "いいえ", "예", "아니요", "да", "нет")
_ANY_SCOPE = re.compile(
    r"\A(?:when |if )?(?:always|ever|anything|everything|(?:any|every|all|each)\b(?: \w+){1,4}|"
    r"(?:an?|the) (?:reply|answer|response|output|text|item|case) (?:is|was) (?:given|judged|read|evaluated|shown))\Z",
    re.IGNORECASE,
)

_PERSONAL = (
    ("an e-mail address", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("an account number", re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){2,7}(?:\s?[A-Z0-9]{1,4})?\b")),
    ("a telephone or card number", re.compile(r"(?<![\w.])\+?\d(?:[\s().\-/]{0,2}\d){7,}(?!\w)")),
    ("a long number", re.compile(r"\d{6,}")),
)
_DATE = re.compile(r"\b(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|(?:19|20)\d\d\s?[-–/]\s?(?:19|20)\d\d)\b")
"""Dates and spans of years are no telephone numbers."""

_TO_THE_MODEL = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|the|your|these|those|previous|prior|above|earlier|other|and|of|existing)\s+)+"
    r"(?:instructions?|guidelines?|rules?|prompts?|rubrics?|criteria)\b"
    r"|\bsystem prompt\b|\byou are (?:now |no longer )?(?:an?|the) (?:ai|assistant|language model|judge|chatbot)\b|<\|?(?:im_start|system|assistant)",
    re.IGNORECASE,
)


def orders_a_verdict(text: str, labels: Sequence[str], *, scope: str = "", decide: str = "") -> str | None:
    """Whether a text wants one label of the scale whatever the case, as "always answer yes" does.

    With a ``scope`` that covers every case, "answer yes" is such an order as well; with a real one it is a guideline.
    """
    label = _any_of([*labels, "yes", "no", "true", "false", "tie"]) + "|[0-9]+"
    named = rf"{_QUOTE}(?:(?:{label})(?!\w){_CLAUSE_ENDS}|(?:yes|no)\b(?!\s*(?:more|less|matter|longer|later|other|one|word|need)\b))"
    told = _any_of([*labels, *(_YES_NO_ELSEWHERE if "yes" in labels else ())])
    patterns = (
        rf"\b{_ALWAYS}[\s,]+{_VERB}\s+{named}",
        rf"\b{_VERB}\s+{_QUOTE}(?:{label}){_QUOTE}\s*,?\s+(?:{_ALWAYS}|(?:to|for)\s+{_EVERYTHING})\b",
        rf"\b(?:verdict|answer|score|rating|label|grade|result)\s+(?:(?:must|should|shall|has to|is|be)\s+)+(?:always|never)\s+(?:be\s+)?{named}",
        rf"(?:{_ELSEWHERE})[^.,;。，]{{0,20}}?(?<![^\W{_CJK}]){_QUOTE}(?:{told})(?![^\W{_CJK}])",
    )
    everywhere = not scope or _ANY_SCOPE.match(scope.strip())
    if any(re.search(pattern, text, re.IGNORECASE) for pattern in (*patterns, *(_of_everything(label) if everywhere else ()))):
        return "orders one verdict instead of saying what decides it"
    if scope and everywhere and re.match(rf"\A{_VERB}\s+{_QUOTE}(?:{label}){_QUOTE}\W*\Z", decide.strip(), re.IGNORECASE):
        return "orders one verdict instead of saying what decides it"
    return None


def _of_everything(label: str) -> tuple[str, ...]:
    """How one label is ordered for all that is judged without the word always: "mark every reply as poor", "answer nothing but yes"."""
    named = rf"(?:(?:as|with|to|be|is|a|an|the)\s+)*{_QUOTE}(?:{label})(?!\w){_SENTENCE_ENDS}"
    return (
        rf"\b{_VERB}\s+{_EVERYTHING}\s+{named}",
        rf"\b{_EVERYTHING}\s+(?:is|are|gets?|deserves?|counts?|(?:must|should|shall|has to|have to)\s+(?:be|get))\s+{named}",
        rf"\b{_VERB}\s+{_QUOTE}(?:{label}){_QUOTE}\s+(?:for|to|on)\s+{_EVERYTHING}{_SENTENCE_ENDS}",
        rf"\b(?:never\s+{_VERB}\s+(?:anything|any \w+)|{_VERB}\s+nothing)\s+(?:but|except|other than)\s+{named}",
        rf"\bonly(?:\s+ever)?\s+{_VERB}\s+{named}",
        rf"\A{_ALWAYS}\s+{_QUOTE}(?:{label}){_QUOTE}\W*\Z",
    )


def _any_of(words: Sequence[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True))


def addresses_the_model(text: str) -> str | None:
    """Whether a text gives orders about the judge's own instructions, as an injected one does."""
    found = _TO_THE_MODEL.search(text)
    return f"speaks of the judge's own instructions: {found[0]!r}" if found else None


def personal_data(text: str) -> str | None:
    """Whether a text holds what looks like personal data; names are not recognised."""
    without_dates = _DATE.sub(" ", text)
    kind = next((kind for kind, pattern in _PERSONAL if pattern.search(without_dates)), None)
    return f"holds what looks like {kind}" if kind else None


def copied(text: str, sources: Sequence[str]) -> str | None:
    """Whether a text repeats a case word for word over a long stretch. ``sources`` are ``folded`` texts."""
    tokens = _TOKEN.findall(text.casefold())
    dense = sum(bool(re.match(rf"[{_CJK}]", token)) for token in tokens) * 2 > len(tokens)
    length = _LONGEST_COPY * (2 if dense else 1)
    for start in range(len(tokens) - length):
        run = " ".join(tokens[start : start + length + 1])
        if any(f" {run} " in source for source in sources):
            return f"copies a case: {run!r}"
    return None


def folded(text: str) -> str:
    """A text as words between single spaces, as ``copied`` compares it."""
    return f" {' '.join(_TOKEN.findall(text.casefold()))} "

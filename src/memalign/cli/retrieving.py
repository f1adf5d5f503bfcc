"""From ``--retrieve NAME=VALUE`` to settings: how many cases are shown, and which."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from memalign.errors import ConfigurationError
from memalign.retrieval import Retrieval

if TYPE_CHECKING:
    from memalign.judge import Judge

_JUDGES_OWN = {"k": int, "floor": float}
"""Settings of the judge beside its ``Retrieval``."""
_LISTS = ("annotators", "sources")
_TIMES = ("since", "until")
_SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def parsed(given: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The changes of the judge's own settings, and those of its ``Retrieval``. Raises ConfigurationError."""
    known = [*_JUDGES_OWN, *(field.name for field in fields(Retrieval))]
    own: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if name not in known or not equals:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"--retrieve {text!r} is not NAME=VALUE; names: {', '.join(known)}{meant}")
        try:
            if name in _LISTS:
                changes[name] = [*changes.get(name, []), *([value] if value else [])]
            elif name in _JUDGES_OWN:
                own[name] = _JUDGES_OWN[name](value)
            else:
                changes[name] = _SWITCHES[value.lower()] if name == "words" else value if name in _TIMES else float(value)
        except (KeyError, ValueError):
            wanted = "on or off" if name == "words" else "a whole number" if name == "k" else "a number"
            raise ConfigurationError(f"--retrieve {name} takes {wanted}, not {value!r}") from None
    return own, changes


def changed(before: Retrieval, changes: dict[str, Any]) -> Retrieval:
    """Settings with changes; an empty value of a list or time lifts that filter. Raises ConfigurationError."""
    kept = {name: value for name, value in before.to_dict().items() if name not in changes}
    return Retrieval.from_dict(kept | {name: value for name, value in changes.items() if value not in ("", [])})


def retrieving(judge: Judge, given: Sequence[str] | None) -> Judge:
    """The judge with other settings for this run; what is stored of it stays."""
    if not given:
        return judge
    own, changes = parsed(given)
    return judge.retrieving(retrieval=changed(judge.retrieval, changes), **own)

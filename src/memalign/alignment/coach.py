"""The coach: is an expert's reason usable? Asked before it is stored, in one model call."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from memalign.errors import UnreadableReply
from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.records import Episode, Feedback, Guideline, Usage, content_hash, storable
from memalign.rendering import item_text, one_line, search_text, trimmed
from memalign.scale import Scale
from memalign.session import Meter, Session
from memalign.working import Task, fenced

Problem = Literal["none", "missing", "repeats", "vague", "contradicts"]

_GUIDELINES = 12
"""Most similar to the reason: one that contradicts it speaks of the same thing."""
_CASES = 4
_LONGEST = 1200
"""Characters of an item, and of a reason, that the coach reads."""
_SENTENCE = 200
"""Characters of what the coach writes: a small model goes on until its tokens are used up, and half a JSON is none."""
_MAX_TOKENS = 240
_EMPTY_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "answer",
        "bad",
        "good",
        "i",
        "in",
        "is",
        "it",
        "judge",
        "no",
        "not",
        "ok",
        "okay",
        "reply",
        "right",
        "the",
        "this",
        "verdict",
        "was",
        "wrong",
        "yes",
        "fine",
        "poor",
        "great",
        "nice",
    ]
)
_EXPLAINED = {
    "missing": "There is no reason: the verdict teaches something, a reason teaches what to look for in other cases.",
    "repeats": "The reason says no more than the verdict: name what was done, or missing.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What the coach says of one correction."""

    feedback_id: str
    problem: Problem
    contradicts: str = ""
    """Id of the guideline or of the feedback record that the reason contradicts."""
    message: str = ""
    """What to write instead, for the expert; empty when the reason is usable."""
    question: str = ""
    """The scope question: when would the reason not apply?"""
    usage: Usage = Usage()

    @property
    def usable(self) -> bool:
        """Whether the reason can be learned from as it is."""
        return self.problem == "none"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


async def coach(session: Session, task: Task, feedback: Feedback) -> Advice:
    """Look at a correction against the guidelines and cases that are nearest to it. Stores nothing but the cost.

    A reason that is missing, or holds no word beyond the verdict, costs no call. Raises what the model and the embedder raise; UnreadableReply.
    """
    problem = plain_problem(task.scale, feedback)
    if problem != "none":
        return Advice(feedback_id=feedback.id, problem=problem, message=_EXPLAINED[problem])
    meter = Meter()
    try:
        guidelines, cases = await _nearest(session, meter, feedback)
        reply = await session.ask(meter, session.reflection_model, _request(task, feedback, guidelines, cases))
    finally:
        session.memory.log(meter.calls)
    return _read(reply.text, feedback, [*(g.id for g in guidelines), *(case.feedback.id for case in cases)], meter.usage)


def plain_problem(scale: Scale, feedback: Feedback) -> Problem:
    """What is wrong with a reason at first sight: it is missing, or it repeats the verdict."""
    words = re.findall(r"\w+", feedback.rationale.casefold())
    if not words:
        return "missing"
    labels = {word for label in scale.labels for word in re.findall(r"\w+", label.casefold())}
    return "repeats" if set(words) <= _EMPTY_WORDS | labels else "none"


async def _nearest(session: Session, meter: Meter, feedback: Feedback) -> tuple[list[Guideline], list[Episode]]:
    text, reason = search_text(feedback.item), feedback.rationale
    space = await session.reader(meter)
    view = await asyncio.to_thread(space.memory.view)
    texts = {content_hash(text): text} | ({content_hash(t): t for t in (reason, *(g.text for g in view.guidelines))} if view.guidelines else {})
    if not view.guidelines and not view.items:
        return [], []
    vectors = await space.vectors(meter, texts)
    near = sorted(view.guidelines, key=lambda g: -float(vectors[content_hash(g.text)] @ vectors[content_hash(reason)]))[:_GUIDELINES]
    item, query = feedback.item.id, vectors[content_hash(text)]
    found = await asyncio.to_thread(space.memory.cases, view, item, query, k=_CASES, floor=0.0, own=True)
    others = [case for case in found.episodes if case.feedback.id != feedback.id and case.feedback.rationale.strip()]
    return sorted(near, key=lambda g: view.guidelines.index(g)), others


def _request(task: Task, feedback: Feedback, guidelines: Sequence[Guideline], cases: Sequence[Episode]) -> ChatRequest:
    shown = [
        {
            "id": case.feedback.id,
            "item": fenced(task.secret, trimmed(item_text(case.feedback.item), _LONGEST)),
            "label": task.scale.label_of(case.feedback.value),
            "rationale": _reason(case.feedback),
        }
        for case in cases
    ]
    user = render(
        "coach_user",
        guidelines=guidelines,
        cases=shown,
        item=fenced(task.secret, trimmed(item_text(feedback.item), _LONGEST)),
        label=task.scale.label_of(feedback.value),
        rationale=_reason(feedback),
    )
    known = [*(guideline.id for guideline in guidelines), *(case.feedback.id for case in cases)]
    kinds = ["none", "vague", "repeats", *(["contradicts"] if known else [])]
    return ChatRequest(
        messages=(Message("system", render("coach_system", instructions=task.instructions, scale=task.scale.prompt())), Message("user", user)),
        schema={
            "type": "object",
            "properties": {
                "problem": {"type": "string", "enum": kinds},
                "with": {"type": "string", "enum": ["", *known]},
                "why": {"type": "string", "maxLength": _SENTENCE},
                "question": {"type": "string", "maxLength": _SENTENCE},
            },
            "required": ["problem", "with", "why", "question"],
            "additionalProperties": False,
        },
        max_tokens=_MAX_TOKENS,
        purpose="coach",
    )


def _reason(feedback: Feedback) -> str:
    """The reason on one line: on several it could pass for another case."""
    return trimmed(one_line(feedback.rationale), _LONGEST)


def _read(text: str, feedback: Feedback, known: Sequence[str], usage: Usage) -> Advice:
    """The reply as advice. A contradiction with something that does not exist is no contradiction."""
    try:
        said = storable(json.loads(text))
        problem, other, why, question = (str(said[name]).strip() for name in ("problem", "with", "why", "question"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnreadableReply(
            f"the coach's reply is not the JSON that was asked for ({type(error).__name__}); the reason can be stored without it"
        ) from error
    if problem not in get_args(Problem) or (problem == "contradicts" and other not in known):
        problem = "none"
    return Advice(
        feedback_id=feedback.id,
        problem=problem,  # type: ignore[arg-type]  # checked above
        contradicts=other if problem == "contradicts" else "",
        message="" if problem == "none" else trimmed(why, 300) or _EXPLAINED.get(problem, ""),
        question=trimmed(question, 300),
        usage=usage,
    )

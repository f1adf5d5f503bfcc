"""The frozen, plain records that travel between the parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

from memalign.errors import BadRecord

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)

LONGEST_ID = 500
"""Characters of a given feedback id: what every database can index, whatever the alphabet."""

GuidelineState = Literal["candidate", "active", "quarantined", "superseded", "retired"]


def canonical(value: Any) -> str:
    """One text per JSON value: keys sorted, no white space. Raises BadRecord for what is not JSON."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(f"not a JSON value ({error})") from error


def storable(value: Any) -> Any:
    """A JSON value with a question mark for each half of a surrogate pair, which models may write but no store can hold."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def content_hash(*parts: Any) -> str:
    """A 128-bit hexadecimal digest of JSON values."""
    return hashlib.blake2b("\x1f".join(canonical(part) for part in parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is judged. Each field is any JSON value."""

    inputs: Any = None
    outputs: Any = None
    expectations: Any = None

    @property
    def id(self) -> str:
        """The digest of the content: equal items have equal ids."""
        return content_hash(self.inputs, self.outputs, self.expectations)

    def check_given(self) -> Item:
        """The item itself; raises BadRecord when there is nothing to judge."""
        if self.inputs is None and self.outputs is None and self.expectations is None:
            raise BadRecord("there is nothing to judge: give inputs, outputs or both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """An expert's verdict on an item, with the reason in natural words.

    Without an ``id`` one is made from item and annotator, so a second verdict of the same expert on the same item replaces the first, and
    verdicts of several experts stand side by side. Who corrects the annotator names the record by its id; without it, it is another record.
    """

    inputs: Any = None
    outputs: Any = None
    expectations: Any = None
    value: Any
    """The verdict, a value of the judge's scale."""
    rationale: str = ""
    """Why; may be empty (the label still teaches)."""
    annotator: str = ""
    id: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    source: str = ""
    """Where it came from, e.g. a file name or a ticket."""

    def __post_init__(self) -> None:
        for name in ("rationale", "annotator", "id", "source"):
            if not isinstance(getattr(self, name), str):
                raise BadRecord(f"must be text, not {type(getattr(self, name)).__name__}", field=name)
        if len(self.id) > LONGEST_ID:
            raise BadRecord(f"has {len(self.id):,} characters; at most {LONGEST_ID}", field="id")
        if self.value is None:
            raise BadRecord("is missing", field="value")
        if self.inputs is None and self.outputs is None:
            raise BadRecord("inputs and outputs are both missing", field="outputs")
        if not isinstance(self.created_at, datetime):
            raise BadRecord(f"must be a datetime, not {type(self.created_at).__name__}", field="created_at")
        if self.created_at.tzinfo is None:
            object.__setattr__(self, "created_at", self.created_at.replace(tzinfo=UTC))
        if not self.id:
            object.__setattr__(self, "id", content_hash(self.item.id, self.annotator))

    @property
    def item(self) -> Item:
        """What was judged."""
        return Item(inputs=self.inputs, outputs=self.outputs, expectations=self.expectations)

    def check_storable(self) -> Feedback:
        """The record itself; raises BadRecord when a field is no JSON value or no valid Unicode, so that no store can hold it."""
        for field_name in ("inputs", "outputs", "expectations", "value", "rationale", "annotator", "id", "source"):
            try:
                canonical(getattr(self, field_name)).encode()
            except BadRecord as error:
                raise BadRecord(error.reason, field=field_name) from error
            except UnicodeEncodeError as error:
                raise BadRecord("holds half of a surrogate pair, which is not valid Unicode", field=field_name) from error
        return self

    def says_the_same_as(self, other: Feedback) -> bool:
        """Whether it is the same verdict on the same item for the same reason, whoever gives it."""
        same = self.item.id == other.item.id and canonical(self.value) == canonical(other.value)  # in JSON 1, 1.0 and true differ
        return same and self.rationale == other.rationale

    def teaches_the_same_as(self, other: Feedback) -> bool:
        """Whether nothing that teaches differs: what is said, and by whom (time and source do not teach)."""
        return self.annotator == other.annotator and self.says_the_same_as(other)


def each_feedback(given: Iterable[Feedback]) -> Iterator[Feedback]:
    """The records one by one. Raises BadRecord for what is none, naming its place."""
    if not isinstance(given, Iterable):
        raise BadRecord(f"give a list of Feedback, not one {type(given).__name__}")
    for place, record in enumerate(given, start=1):
        if not isinstance(record, Feedback):
            raise BadRecord(f"must be a Feedback, not {type(record).__name__}", row=place)
        yield record


@dataclass(frozen=True, slots=True, kw_only=True)
class Guideline:
    """A principle distilled from the experts' reasons."""

    id: str
    version: int
    text: str
    """"When <scope>, <what to decide>, because <why>."""
    scope: str = ""
    state: GuidelineState = "active"
    pinned: bool = False
    evidence_for: tuple[str, ...] = ()
    """Ids of the feedback it rests on."""
    evidence_against: tuple[str, ...] = ()
    utility: float | None = None
    """How much worse the judge is without it, by leave-one-out replays; None: never measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A feedback record held in episodic memory."""

    feedback: Feedback
    judged: Any = None
    """The judge's own last verdict before the expert spoke, if it is known."""
    stored_at: datetime | None = None
    item_id: str = ""
    """The id of the item that was judged; where it is not given, it is made."""

    def __post_init__(self) -> None:
        if not self.item_id:
            object.__setattr__(self, "item_id", self.feedback.item.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What only the experts can decide: between guidelines, which are quarantined meanwhile, or between their own verdicts on one item."""

    id: str
    guidelines: tuple[Guideline, ...]
    """Two that contradict each other, one that as many cases contradict as support, or none: then the verdicts on an item differ."""
    sides: tuple[tuple[Episode, ...], ...]
    """The cases for the first guideline, and those for the second (of a single one: those against it); of an item, those of each verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What model calls consumed. ``cached_tokens`` are the part of ``prompt_tokens`` served from a prefix cache."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    embedded_texts: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)})


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of memory that a judgement did not read."""

    kind: Literal["guideline", "case", "part of case"]
    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How a judgement came about."""

    similarity: Mapping[str, float]
    """Of each case shown to the item, by feedback id; 1.0 for the item's own."""
    tokens: Mapping[str, int]
    """What each part of the prompt takes, estimated at four characters a token."""
    left_out: tuple[LeftOut, ...]
    seconds: Mapping[str, float]
    """Where the time went: embed, search, assemble, queue (waiting for a turn at the model), model, read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge says of an item, and on what it rests."""

    value: Any
    id: str = ""
    """By which ``judge.memory.explain`` finds it again; empty for a verdict that was not logged (in an evaluation, or of a pinned judge)."""
    rationale: str = ""
    confidence: float | None = None
    """Probability that experts agree with ``value``: from token probabilities or from votes, and from what ``Judge.calibrate`` fitted; None
    when the model does not tell and was asked once."""
    guideline_ids: tuple[str, ...] = ()
    episode_ids: tuple[str, ...] = ()
    """Ids of the feedback records shown, most similar last."""
    voter_ids: tuple[str, ...] = ()
    """Ids of the feedback records that carried the cases' vote, the strongest first; empty where no vote counts (see ``Judge.calibrate``)."""
    revision: int = 0
    """The revision of memory under which it was given."""
    usage: Usage = Usage()
    cost_usd: float | None = None
    """None when the model's price is unknown."""
    seconds: float = 0.0
    probabilities: Mapping[str, float] | None = None
    """Probability of each label as the model gives it, before the cases' vote and what was fitted."""
    abstained: bool = False
    """Whether the judge leaves the item to the experts; ``value`` is then its best guess, no more."""
    expected: float | None = None
    """Scores: the mean under the probabilities, between two scores as a rule."""
    votes: int = 0
    """Replies that were counted as votes; 0: the model told the probabilities of its tokens."""
    orders: tuple[Any, Any] | None = None
    """Pairwise in both orders: the verdict in the order given, and in the other one."""
    trace: Trace | None = None
    """How it came about: similarities, what had no room, where the time went."""

    def explain(self) -> str:
        """How it came about, as lines of plain text; see ``judge.memory.explain(verdict.id)`` for the guidelines and cases themselves."""
        guidelines, cases = ", ".join(self.guideline_ids) or "none", "none"
        if self.trace is None:
            return f"guidelines: {guidelines}\ncases: {', '.join(self.episode_ids) or cases}"
        near = self.trace.similarity
        cases = ", ".join(f"{key} ({near[key]:.2f})" if key in near else key for key in self.episode_ids) or cases
        sizes = ", ".join(f"{name} {size}" for name, size in self.trace.tokens.items() if size)
        times = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in self.trace.seconds.items())
        lines = [f"revision {self.revision}", f"guidelines: {guidelines}", f"cases (similarity), most similar last: {cases}"]
        lines += [f"left out: {left.kind} {left.id}: {left.reason}" for left in self.trace.left_out]
        lines += [f"voters: {', '.join(self.voter_ids)}"] if self.voter_ids else []
        return "\n".join([*lines, f"tokens, about: {sizes}", f"milliseconds: {times}"])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a batch returns in place of a verdict: data, never silently a verdict."""

    error: str
    retryable: bool
    attempts: int = 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

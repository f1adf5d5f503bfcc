"""The tables. Rows of memory carry the interval of revisions in which they hold, so that any revision can be read, and none is half there."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, ForeignKeyConstraint, Index, Integer, MetaData, String, Table, Text

from memalign.stores.types import Numbers, Words

metadata = MetaData()

judge = Table(
    "judge",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Words(200), nullable=False, unique=True),
    Column("settings", Text, nullable=False),  # JSON: instructions, scale, models, k ...
    Column("secret", String(32), nullable=False),  # keys the marks that fence judged text in prompts
    Column("created_at", String(40), nullable=False),
    Column("purged", Integer, nullable=False, server_default="0"),  # revision of the newest purge: what was held in RAM before it must go
    Column("scrubbed", Integer, nullable=False, server_default="0"),  # of the newest purge whose bytes are gone from the disk as well
    Column("numbered", Integer, nullable=False, server_default="0"),  # highest number of a purged guideline: no number is given twice
)


def _judge_id() -> Column[int]:
    return Column("judge_id", Integer, ForeignKey("judge.id", ondelete="CASCADE"), nullable=False)


# One row a change of memory. `decision` (JSON) is what the experts' labels decided about judging: threshold, cases shown. `ids` is a keyed digest
# of the records that the change named, `hash` seals the row and all before it; neither holds content.
revision = Table(
    "revision",
    metadata,
    Column("judge_id", Integer, ForeignKey("judge.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    Column("actor", Words(200), nullable=False),
    Column("verb", String(20), nullable=False),
    Column("counts", Text, nullable=False),
    Column("decision", Text),
    Column("ids", String(64), nullable=False, server_default=""),
    Column("hash", String(64), nullable=False, server_default=""),
)

# Keyed digests of the ids of purged records, so that an old export or file does not bring one back. `key` is the one that made the digest.
tombstone = Table(
    "tombstone",
    metadata,
    Column("judge_id", Integer, ForeignKey("judge.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("at", String(40), nullable=False),
)

# A version of a record is in episodic memory in revisions since <= r < until. `since` is null while it waits for its first commit,
# `distilled` is null while semantic memory has not learned from it.
feedback = Table(
    "feedback",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("id", Words(200), nullable=False),
    Column("version", Integer, nullable=False),
    Column("item_id", String(32), nullable=False),
    Column("inputs", Text, nullable=False),
    Column("outputs", Text, nullable=False),
    Column("expectations", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("rationale", Words(), nullable=False),
    Column("annotator", Words(200), nullable=False),
    Column("source", Words(), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("stored_at", String(40), nullable=False),
    Column("judged", Text),
    Column("content_hash", String(32), nullable=False),
    Column("since", Integer),
    Column("until", Integer),
    Column("distilled", Integer),
    Index("feedback_version", "judge_id", "id", "version", unique=True),
    Index("feedback_item", "judge_id", "item_id"),
    Index("feedback_since", "judge_id", "since"),
    Index("feedback_until", "judge_id", "until"),
    Index("feedback_hash", "content_hash"),
)

# Equal text is embedded once per embedder, whatever refers to it by its hash.
vector = Table(
    "embedding",
    metadata,
    Column("embedder", Words(200), primary_key=True),
    Column("content_hash", String(32), primary_key=True),
    Column("dimension", Integer, nullable=False),
    Column("data", Numbers, nullable=False),
    sqlite_with_rowid=False,
)

# A version is immutable but for `until`; a change of state is a new version.
guideline = Table(
    "guideline",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("id", String(40), nullable=False),
    Column("version", Integer, nullable=False),
    Column("text", Words(), nullable=False),
    Column("scope", Words(), nullable=False),
    Column("state", String(12), nullable=False),
    Column("pinned", Boolean, nullable=False, default=False),
    Column("since", Integer, nullable=False),
    Column("until", Integer),
    Column("utility", Float),  # a measurement of the text, not part of it: written when it is taken
    Index("guideline_version", "judge_id", "id", "version", unique=True),
)


def _link(name: str, *columns: Column[int]) -> Table:
    return Table(
        name,
        metadata,
        Column("guideline_row", Integer, primary_key=True),
        Column("feedback_row", Integer, primary_key=True),
        *columns,
        ForeignKeyConstraint(["guideline_row"], ["guideline.row"], ondelete="CASCADE"),
        ForeignKeyConstraint(["feedback_row"], ["feedback.row"], ondelete="CASCADE"),
        Index(f"{name}_feedback", "feedback_row"),
        sqlite_with_rowid=False,
    )


evidence = _link("evidence", Column("sign", Integer, nullable=False))  # +1 for, -1 against
taint = _link("taint")  # all records that stood in the prompt which produced the version

# What alignment asks the experts: which of two guidelines that contradict each other holds, or (`second` is null) whether one holds that
# as many cases contradict as support. Both are quarantined while the question is open, in revisions since <= r < until.
question = Table(
    "question",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("id", String(40), nullable=False),
    Column("first", String(40), nullable=False),
    Column("second", String(40)),
    Column("since", Integer, nullable=False),
    Column("until", Integer),
    Index("question_judge", "judge_id", "since"),
)

# A distilled batch between its model call and the commit that consumes it, so that a killed alignment is not paid for twice.
draft = Table(
    "draft",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("key", String(32), nullable=False),  # digest of what was asked, by which model
    Column("content", Text, nullable=False),  # JSON: the proposals as the model made them
    Index("draft_judge", "judge_id", "key"),
)

# All records that a draft distilled. A draft says what they said: whoever deletes a record deletes its drafts.
draft_record = Table(
    "draft_record",
    metadata,
    Column("draft_row", Integer, primary_key=True),
    Column("feedback_row", Integer, primary_key=True),
    ForeignKeyConstraint(["draft_row"], ["draft.row"], ondelete="CASCADE"),
    ForeignKeyConstraint(["feedback_row"], ["feedback.row"], ondelete="CASCADE"),
    Index("draft_record_feedback", "feedback_row"),
    sqlite_with_rowid=False,
)

# Every model call that memory or judging paid for; no prompt text.
ledger = Table(
    "ledger",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("at", String(40), nullable=False),
    Column("purpose", String(20), nullable=False),
    Column("model", Words(200), nullable=False),
    Column("calls", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("embedded_texts", Integer, nullable=False),
    Column("cost_usd", Float),
    Column("seconds", Float, nullable=False),
    Column("error", Words()),
    Index("ledger_judge", "judge_id", "at"),
)

verdict = Table(
    "verdict",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("id", String(32)),  # null for verdicts of the first schema
    Column("at", String(40), nullable=False),
    Column("item_id", String(32), nullable=False),
    Column("value", Text, nullable=False),
    Column("rationale", Words(), nullable=False),
    Column("confidence", Float),
    Column("revision", Integer, nullable=False),
    Column("guideline_ids", Text, nullable=False),
    Column("episode_ids", Text, nullable=False),
    Column("voter_ids", Text, nullable=False, server_default="[]"),
    Index("verdict_item", "judge_id", "item_id"),
    Index("verdict_id", "judge_id", "id", unique=True),
)

# What the judge answered when changes of memory were tried; `key` is the digest of all that the model read. A cache.
replay = Table(
    "replay",
    metadata,
    Column("row", Integer, primary_key=True),
    _judge_id(),
    Column("key", String(32), nullable=False),
    Column("draw", Integer, nullable=False),
    Column("value", Text, nullable=False),
    Column("probabilities", Text),
    Index("replay_key", "judge_id", "key", "draw"),
)

# What a verified alignment found out about a version of a guideline, and so why it stands or does not.
trial = Table(
    "trial",
    metadata,
    Column("row", Integer, primary_key=True),
    Column("guideline_row", Integer, ForeignKey("guideline.row", ondelete="CASCADE"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("outcome", String(12), nullable=False),
    Column("fixed", Integer, nullable=False),
    Column("broken", Integer, nullable=False),
    Column("unchanged", Integer, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("reason", Words(), nullable=False),
    Index("trial_guideline", "guideline_row"),
)

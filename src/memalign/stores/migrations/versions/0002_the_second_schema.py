"""The second released schema. One function a subject; SQLite and PostgreSQL both take these statements as they stand, but for _vectors."""

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _explaining()
    _forgetting()
    _verification()
    _aligning()
    _vectors()


def _explaining() -> None:
    # A verdict has a name, and says which cases voted: what is needed to explain it later.
    op.add_column("verdict", sa.Column("id", sa.String(length=32), nullable=True))
    op.add_column("verdict", sa.Column("voter_ids", sa.Text(), nullable=False, server_default="[]"))
    op.create_index("verdict_id", "verdict", ["judge_id", "id"], unique=True)


def _forgetting() -> None:
    op.add_column("judge", sa.Column("purged", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("judge", sa.Column("scrubbed", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("judge", sa.Column("numbered", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("revision", sa.Column("ids", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("revision", sa.Column("hash", sa.String(length=64), nullable=False, server_default=""))
    op.create_table(
        "tombstone",
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("judge_id", "key", "digest"),
    )


def _verification() -> None:
    op.create_table(
        "replay",
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("draw", sa.Integer(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("probabilities", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("row"),
    )
    op.create_index("replay_key", "replay", ["judge_id", "key", "draw"], unique=False)
    op.create_table(
        "trial",
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("guideline_row", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=12), nullable=False),
        sa.Column("fixed", sa.Integer(), nullable=False),
        sa.Column("broken", sa.Integer(), nullable=False),
        sa.Column("unchanged", sa.Integer(), nullable=False),
        sa.Column("p_value", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["guideline_row"], ["guideline.row"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("row"),
    )
    op.create_index("trial_guideline", "trial", ["guideline_row"], unique=False)


def _aligning() -> None:
    # Utility of guidelines, questions to the experts, and drafts that outlive a killed alignment.
    op.add_column("guideline", sa.Column("utility", sa.Float(), nullable=True))
    op.create_table(
        "question",
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("first", sa.String(length=40), nullable=False),
        sa.Column("second", sa.String(length=40), nullable=True),
        sa.Column("since", sa.Integer(), nullable=False),
        sa.Column("until", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("row"),
    )
    op.create_index("question_judge", "question", ["judge_id", "since"], unique=False)
    op.create_table(
        "draft",
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("row"),
    )
    op.create_index("draft_judge", "draft", ["judge_id", "key"], unique=False)
    op.create_table(
        "draft_record",
        sa.Column("draft_row", sa.Integer(), nullable=False),
        sa.Column("feedback_row", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["draft_row"], ["draft.row"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["feedback_row"], ["feedback.row"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("draft_row", "feedback_row"),
        sqlite_with_rowid=False,
    )
    op.create_index("draft_record_feedback", "draft_record", ["feedback_row"], unique=False)


def _vectors() -> None:
    op.rename_table("vector", "embedding")  # PostgreSQL gives a table's name to the type of its rows, and pgvector's type has this name
    if op.get_bind().dialect.name == "postgresql":
        _pgvector()
        _words()


def _pgvector() -> None:
    """Bytes become vectors."""
    op.execute('ALTER TABLE embedding ADD COLUMN "numbers" VECTOR')
    old = sa.table("embedding", sa.column("embedder"), sa.column("content_hash"), sa.column("data"))
    connection = op.get_bind()
    fill = sa.text("UPDATE embedding SET numbers = CAST(:numbers AS vector) WHERE embedder = :embedder AND content_hash = :content_hash")
    for embedder, content_hash in connection.execute(sa.select(old.c.embedder, old.c.content_hash)).all():
        key = {"embedder": embedder, "content_hash": content_hash}
        data = connection.execute(sa.select(old.c.data).where(old.c.embedder == embedder, old.c.content_hash == content_hash)).scalar_one()
        connection.execute(fill, key | {"numbers": str(np.frombuffer(data, dtype="<f4").tolist())})
    op.drop_column("embedding", "data")
    op.alter_column("embedding", "numbers", new_column_name="data", nullable=False)


def _words() -> None:
    """PostgreSQL enforces the length of a VARCHAR, SQLite does not: what people and models name may be long."""
    for table, column in (
        ("judge", "name"),
        ("embedding", "embedder"),
        ("feedback", "id"),
        ("feedback", "annotator"),
        ("ledger", "model"),
        ("revision", "actor"),
    ):
        op.alter_column(table, column, type_=sa.Text(), existing_nullable=False)

"""The second released schema. One function a subject; SQLite and PostgreSQL both take these statements as they stand."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _explaining()
    _forgetting()
    _verification()


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

"""The second released schema. One function a subject; SQLite and PostgreSQL both take these statements as they stand."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _explaining()
    _forgetting()


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

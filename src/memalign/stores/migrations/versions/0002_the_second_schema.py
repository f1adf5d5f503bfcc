"""What today's memory keeps beyond the first released schema. SQLite and PostgreSQL both take these statements as they stand."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # A verdict has a name, and says which cases voted: what is needed to explain it later.
    op.add_column("verdict", sa.Column("id", sa.String(length=32), nullable=True))
    op.add_column("verdict", sa.Column("voter_ids", sa.Text(), nullable=False, server_default="[]"))
    op.create_index("verdict_id", "verdict", ["judge_id", "id"], unique=True)

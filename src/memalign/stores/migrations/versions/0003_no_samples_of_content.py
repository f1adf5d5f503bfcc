"""PostgreSQL keeps samples of columns for its planner, outside the tables, where no purge reaches them: of what people and models wrote it takes none."""

from alembic import op

revision = "0003"
down_revision = "0002"

CONTENT = {
    "feedback": ("id", "inputs", "outputs", "expectations", "value", "rationale", "annotator", "source", "judged"),
    "guideline": ("text", "scope"),
    "draft": ("content",),
    "verdict": ("value", "rationale", "guideline_ids", "episode_ids", "voter_ids"),
    "replay": ("value", "probabilities"),
    "trial": ("reason",),
    "ledger": ("error",),
    "embedding": ("data",),
}


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in CONTENT.items():
        for column in columns:
            kind = "VECTOR" if (table, column) == ("embedding", "data") else "TEXT"
            # To give a column the type it has rewrites nothing, and drops the samples taken so far.
            op.execute(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" SET STATISTICS 0, ALTER COLUMN "{column}" TYPE {kind}')

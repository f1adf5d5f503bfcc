"""Alembic migrations; one file a released schema."""

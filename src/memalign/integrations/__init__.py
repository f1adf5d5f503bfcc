"""memalign inside other frameworks. Each part needs the extra of its name."""

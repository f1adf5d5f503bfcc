"""Speed, measured: ours and MLflow's, on the same endpoint, in the same run. ``python -m benchmarks.run`` runs all of it."""

"""The wire layer: it translates requests, calls the use cases, and translates their errors. Nothing else."""

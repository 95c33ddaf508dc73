"""Every fault, caused in two replicas under clients: `make chaos`, or `.venv/bin/python -m tests.chaos FAULT...`."""

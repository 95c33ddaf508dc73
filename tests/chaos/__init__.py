"""Every fault, put on two replicas under clients: `make chaos`, or `python -m tests.chaos FAULT...`."""

"""What operators ask the service."""

"""From the model to messages and bytes, and back."""

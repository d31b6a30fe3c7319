"""The original model and others, answering the same conversation."""

"""Passes of a model over texts: in the memory there is, behind shared prompts, and generating."""

"""Impact along the run that unlearning really is: a few AdamW steps, not an argmin."""

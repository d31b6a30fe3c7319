"""Ground truth: unlearn subsets of the negatives for real, and compare with what impact predicted."""

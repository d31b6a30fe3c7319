"""What people read of a run: one HTML page, plots for a paper, model cards."""

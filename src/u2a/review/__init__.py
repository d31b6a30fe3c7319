"""Going through a run's negatives by impact, and marking what is no negative."""

"""Was it better than what I would have done? Methods in one harness, at one budget, over several seeds."""

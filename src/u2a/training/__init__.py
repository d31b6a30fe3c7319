"""The parts of `UnlearnTrainer`: its rows, batches, terms, state and guards; and plain fine-tuning."""

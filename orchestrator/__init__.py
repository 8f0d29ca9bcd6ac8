"""One job's life: spec, state, Ray actors, the training loop."""

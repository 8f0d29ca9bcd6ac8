"""The model and how it improves: rollouts, learner, advantages, losses, weighting, Pareto front."""

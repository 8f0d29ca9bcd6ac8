"""Experiment trackers: what the API says of a job, told to TensorBoard, W&B or MLflow beside it."""

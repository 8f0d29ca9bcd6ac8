"""What is kept as files: checkpoints, here and in a store, and datasets."""

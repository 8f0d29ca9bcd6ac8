"""What can be found wrong with a job, or told of it, before it is accepted."""

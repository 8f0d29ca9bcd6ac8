"""The Ray side of a job: which actors there are, where they run, and that all start or none."""

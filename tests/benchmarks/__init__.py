"""What measures: `python -m tests.benchmarks.NAME` prints a table and, as its last line, one JSON object."""

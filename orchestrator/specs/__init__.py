"""The branches of the job spec's tree; orchestrator.spec is its root. Nothing here imports torch."""

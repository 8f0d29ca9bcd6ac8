"""What people touch: REST API, CLI, client, report."""

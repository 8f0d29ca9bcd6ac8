"""Who starts drivers, and where: on this machine, on a Ray cluster, on Kubernetes."""

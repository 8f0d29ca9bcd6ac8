"""One job's life: spec, state, Ray actors, the training loop."""

import os

# Read when Ray is first imported: a call to an actor that comes too late is to fail, and not to start another Ray.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

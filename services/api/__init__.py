"""The routers of the REST API, one file for each kind of thing."""

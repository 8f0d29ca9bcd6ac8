"""The Lua scripts: each is one atomic operation on a job, read from the file of its name."""

from functools import cache
from importlib.resources import files


@cache
def load() -> dict[str, str]:
    """Script name -> source, the shared prelude in front."""
    lua = [path for path in files(__name__).iterdir() if path.name.endswith(".lua")]
    sources = {path.name.removesuffix(".lua"): path.read_text() for path in lua}
    prelude = sources.pop("prelude")
    return {name: f"{prelude}\n{source}" for name, source in sources.items()}

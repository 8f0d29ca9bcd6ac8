"""To come."""

from fastapi import Request


async def page(request: Request) -> None: ...

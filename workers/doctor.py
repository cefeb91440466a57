"""x"""


async def doctor() -> int:
    """Xx."""
    return 0

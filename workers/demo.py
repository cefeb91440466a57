"""x"""
async def demo() -> int:
    """Xx."""
    return 0

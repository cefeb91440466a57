"""A number of tokens, and whether it is certain."""

from __future__ import annotations

import msgspec


class TokenCount(msgspec.Struct, frozen=True):
    """So many tokens. `exact`: by the model's own tokenizer or rule, or stated."""

    tokens: int
    exact: bool = True

    def __add__(self, other: TokenCount) -> TokenCount:
        """Both together: exact only if both are."""
        return TokenCount(self.tokens + other.tokens, self.exact and other.exact)

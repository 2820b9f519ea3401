__version__: str

UNICODE_VERSION: str
"""The Unicode version of the character classes that splitting patterns match: ``"16.0.0"``."""

def split_pieces(pattern: str, text: str) -> list[str]:
    """Return the pieces of ``text`` under a pattern's name or a regex; together they are ``text``."""

def pattern_regex(pattern: str) -> str:
    """Return the regex of a pattern's name, spelled as Python's ``regex`` and Oniguruma read it alike."""

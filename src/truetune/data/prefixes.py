"""How far two texts are the same."""


def common_length(left: str, right: str) -> int:
    """The number of characters that both begin with."""
    places = enumerate(zip(left, right, strict=False))
    return next((place for place, (one, other) in places if one != other), min(len(left), len(right)))

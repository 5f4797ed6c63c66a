"""The words of the embedded scenes' captions. The first word of every entry is the usual one."""

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "crate"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop", "donut"),
    "crescent": ("crescent", "moon"),
}
# Nouns that leave the shape open.
ANY_SHAPE: tuple[str, ...] = ("shape", "object", "thing")
_NOUNS = [*(noun for nouns in SHAPES.values() for noun in nouns), *ANY_SHAPE]
PLURALS: dict[str, str] = {noun: noun + ("es" if noun[-1] in "sx" else "s") for noun in _NOUNS}

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "white": ("white", "ivory"),
}
TEXTURES: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "speckled"),
    "checkered": ("checkered", "chequered"),
}
# Phrases that follow the noun, instead of a word before it.
TEXTURE_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("without a pattern",),
    "striped": ("with stripes",),
    "dotted": ("with dots", "with spots"),
    "checkered": ("with checks", "with a checkered pattern"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
}
AXES = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
"""Relation -> axis (0 is x), and the sign of object minus subject along it; y points down."""
COUNTS: dict[int, tuple[str, ...]] = {
    1: ("a", "one", "a single"),
    2: ("two", "a pair of", "a couple of"),
    3: ("three", "a trio of"),
    4: ("four",),
    5: ("five",),
    6: ("six",),
}

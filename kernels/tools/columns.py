"""Tables for the terminal."""

from collections.abc import Collection, Sequence


def align(
    rows: Sequence[Sequence[object]], left: Collection[int] = (0,), widths: Sequence[int] | None = None
) -> list[str]:
    """The rows as lines whose columns stand under each other, two spaces apart. A header is a row, too.

    ``left``: which columns start at the left, as names do; the others end at the right, as numbers do. ``widths``: the
    least width of each column, for lines that are printed before the others are known.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    least = widths or [0] * len(texts[0])
    wide = [max(width, *map(len, column)) for width, *column in zip(least, *texts, strict=True)]
    sides = ["<" if number in left else ">" for number in range(len(wide))]
    join = lambda row: "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, wide, strict=True))
    return [join(row).rstrip() for row in texts]

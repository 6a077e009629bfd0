"""A picture of what was found: queries that fared worst, and the first of the gallery for each."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kgraft.data import OpenSet, Photos, Whole
from kgraft.retrieval.distances import Distances
from kgraft.retrieval.evaluation import JUNK, RetrievalResult
from kgraft.settings import argument

_GAP, _FRAME, _TEXT = 14, 4, 22  # pixels
_RIGHT, _INK, _PAPER = (0, 114, 178), (0, 0, 0), (255, 255, 255)


def worst(found: RetrievalResult, count: int) -> np.ndarray:
    """The queries of the lowest average precision, the lowest first; of equals the first ones.

    Args:
        found: What was found.
        count: How many; fewer where fewer count.

    Returns:
        Their numbers, int64.
    """
    argument("count", count, int, low=1)
    counted = np.flatnonzero(found.found > 0)
    return counted[np.argsort(found.precision[counted], kind="stable")][:count]


def first_results(
    distances: Distances, open_set: OpenSet, query: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is nearest to a query, without what is left out.

    Args:
        distances: Of the queries to the gallery.
        open_set: Who is on the images.
        query: Its number.
        count: How many.

    Returns:
        Numbers in the gallery, the nearest first, of equals the first ones; and which of them show
        the query's identity, bool.
    """
    start, people, cameras = open_set.queries, open_set.identities, open_set.cameras
    row, who = distances.chunk(query, query + 1)[0], people[start:]
    right = who == people[query]
    left_out = who == JUNK
    if cameras is not None:
        left_out |= right & (cameras[start:] == cameras[query])
    row[left_out] = np.inf
    nearest = np.argsort(row, kind="stable")[: min(count, int((~left_out).sum()))]
    return nearest, right[nearest]


def page(
    photos: Photos,
    distances: Distances,
    open_set: OpenSet,
    found: RetrievalResult,
    queries: Sequence[int],
    *,
    results: int = 10,
) -> Image.Image:
    """A row a query: itself, and the first results, those of its identity framed.

    Args:
        photos: The test images, as `OpenSet` has them.
        distances: Of the queries to the gallery.
        open_set: Who is on the images.
        found: What was found.
        queries: Which rows.
        results: How many results each has.
    """
    argument("results", results, int, low=1)
    rows, columns = photos.sides
    scale = max(1, 96 // columns)
    high, wide = rows * scale, columns * scale
    step_down, step_across = high + _TEXT + _GAP, wide + _GAP
    whole = Image.new(
        "RGB", ((results + 1) * step_across + 3 * _GAP, len(queries) * step_down + _GAP), _PAPER
    )
    draw, font, view = ImageDraw.Draw(whole), ImageFont.load_default(13), Whole(photos.sides)

    def put(number: int, place: int, top: int, text: str, framed: bool) -> None:
        left = _GAP + place * step_across + (2 * _GAP if place else 0)
        pixels = view(photos.pixels(number, photos.opened(number)))
        image = Image.fromarray(pixels).resize((wide, high), Image.Resampling.NEAREST)
        whole.paste(image, (left, top + _TEXT))
        draw.text((left, top), text, fill=_RIGHT if framed else _INK, font=font)
        if framed:
            box = (left - _FRAME, top + _TEXT - _FRAME, left + wide + 3, top + _TEXT + high + 3)
            draw.rectangle(box, outline=_RIGHT, width=_FRAME)

    for line, query in enumerate(queries):
        top = _GAP + line * step_down
        put(query, 0, top, f"AP {found.precision[query]:.1%}", framed=False)
        nearest, right = first_results(distances, open_set, query, results)
        for place, (number, own) in enumerate(zip(nearest.tolist(), right.tolist(), strict=True)):
            text = f"{place + 1}{' right' if own else ''}"
            put(open_set.queries + number, place + 1, top, text, framed=own)
    return whole

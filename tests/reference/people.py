"""Trees like Market-1501's and DukeMTMC-reID's: names and counts as published, tiny images.

`python -m tests.reference.people market1501|duke DIR`. Nobody is on them: an identity is a colour
and a stripe, a camera changes brightness and tint.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PLANS = {  # identities to learn from and to look for; images of train, query, gallery, junk, nobody
    "market1501": (751, 750, 6, (12_936, 3_368, 19_732), 3_819, 2_798),
    "duke": (702, 702, 8, (16_522, 2_228, 17_661), 0, 0),
}
SIZE = (32, 16)


def jpeg(identity, camera, shot):
    """An image of somebody, as a file has it."""
    rng = np.random.default_rng([identity + 1, 7])
    body, legs = rng.integers(40, 216, (2, 3))
    stripe = int(rng.integers(2, 14))
    pixels = np.empty((*SIZE, 3))
    pixels[: SIZE[0] // 2], pixels[SIZE[0] // 2 :] = body, legs
    pixels[stripe : stripe + 2] = 255 - body
    tint = np.random.default_rng([camera, 11]).uniform(0.8, 1.2, 3)
    noise = np.random.default_rng([identity + 1, camera, shot]).normal(0, 8, pixels.shape)
    out = io.BytesIO()
    shown = np.clip(pixels * tint + noise, 0, 255).astype(np.uint8)
    Image.fromarray(shown).save(out, "JPEG", quality=90)
    return out.getvalue()


def write(root, plan, name):
    """The whole tree."""
    people, sought, cameras, counts, junk, nobody = plan
    shots = {}

    def put(part, identity, camera):
        key = (identity, camera)
        shots[key] = shot = shots.get(key, 0) + 1
        folder = root / part
        folder.mkdir(parents=True, exist_ok=True)
        who = f"{identity:04d}" if identity >= 0 else str(identity)
        file = (
            f"{who}_c{camera}s1_{shot:06d}_00.jpg"
            if name == "market1501"
            else f"{who}_c{camera}_f{shot:07d}.jpg"
        )
        (folder / file).write_bytes(jpeg(identity, camera, shot))

    train = range(2, 2 * people + 2, 2)  # as in Market-1501, numbers have gaps
    test = range(1, 2 * sought, 2)
    for k in range(counts[0]):
        put("bounding_box_train", train[k % people], 1 + k // people % cameras)
    for k in range(counts[1]):
        put("query", test[k % sought], 1 + k // sought % cameras)
    others = range(2 * max(people, sought) + 3, 2 * max(people, sought) + 3 + 2 * 408, 2)
    known = [*test, *others] if name == "duke" else [*test]
    for k in range(counts[2] - junk - nobody):
        put("bounding_box_test", known[k % len(known)], 1 + (k // len(known) + k) % cameras)
    for k in range(junk):
        put("bounding_box_test", -1, 1 + k % cameras)
    for k in range(nobody):
        put("bounding_box_test", 0, 1 + k % cameras)
    (root / "query" / "Thumbs.db").write_bytes(b"")


def small(name, factor=40):
    """A plan with a part of the images and the identities."""
    people, sought, cameras, counts, junk, nobody = PLANS[name]
    return (
        people // factor,
        sought // factor,
        cameras,
        tuple(count // factor for count in counts),
        junk // factor,
        nobody // factor,
    )


if __name__ == "__main__":
    write(Path(sys.argv[2]), PLANS[sys.argv[1]], sys.argv[1])

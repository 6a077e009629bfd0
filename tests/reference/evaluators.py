"""What a retrieval of Market-1501's size costs, beside the evaluators of torchreid and fast-reid.

    python -m tests.reference.evaluators --torchreid DIR --fastreid DIR --metric-learning

`DIR` is a checkout (github.com/KaiyangZhou/deep-person-reid, github.com/JDAI-CV/fast-reid) whose
`rank_cylib` has been built; each may be left out.
`--metric-learning` is pytorch-metric-learning's calculator, if that is installed; it knows no
cameras, so its figures are others. Features are random, of a difficulty at which mAP
is about .7; identities, cameras, junk and distractors as many as in Market-1501. Everything runs in
one process, one after the other, three times; the median is told.
"""

import argparse
import gc
import importlib.util
import os
import resource
import statistics
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from kgraft.retrieval import evaluate

QUERIES, GALLERY, WIDTH, PEOPLE, CAMERAS = 3_368, 19_732, 2_048, 750, 6
JUNK, NOBODYS = 3_819, 2_798
_CHUNK = 256


def scene(spread):
    """Features, identities and cameras of queries and gallery."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((PEOPLE + 1, WIDTH)).astype(np.float32)
    q_ids = rng.integers(1, PEOPLE + 1, QUERIES)
    g_ids = rng.integers(1, PEOPLE + 1, GALLERY)
    g_ids[:JUNK], g_ids[JUNK : JUNK + NOBODYS] = -1, 0
    g_ids = rng.permutation(g_ids)

    def features(ids):
        noise = rng.standard_normal((len(ids), WIDTH)).astype(np.float32)
        return (spread * centres[np.maximum(ids, 0)] * (ids > 0)[:, None] + noise).astype(
            np.float32
        )

    q, g = features(q_ids), features(g_ids)
    cameras = [rng.integers(1, CAMERAS + 1, len(ids)) for ids in (q_ids, g_ids)]
    return q, g, q_ids, g_ids, *cameras


def product(q, g):
    """The matrix product alone, as much of it at a time as kgraft holds."""
    for start in range(0, len(q), _CHUNK):
        q[start : start + _CHUNK] @ g.T


def rank_of(checkout, package):
    """A checkout's module `rank`, with its compiled part, and nothing else of the package."""
    root = Path(checkout) / package
    parts = ".".join(Path(package).parts)
    for name in [parts.rsplit(".", 1)[0], parts, f"{parts}.rank_cylib"]:  # their __init__ need more
        module = type(sys)(name)
        module.__path__ = [str(Path(checkout) / name.replace(".", "/"))]
        sys.modules[name] = module
    spec = importlib.util.spec_from_file_location(f"{parts}.rank", root / "rank.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(found)
    return found


def others(torchreid, fastreid):
    """By name, what takes `scene` and gives mAP and rank-1."""
    found = {}

    def add(name, checkout, package, cython):
        rank = rank_of(checkout, package)
        if cython and not rank.IS_CYTHON_AVAI:
            raise SystemExit(f"{name}: its rank_cylib is not built in {checkout}.")

        def run(q, g, q_ids, g_ids, q_cams, g_cams):
            keep = g_ids != -1  # neither drops junk itself
            q, g = (torch.nn.functional.normalize(torch.from_numpy(own)) for own in (q, g[keep]))
            distances = (1 - q @ g.T).numpy()
            cmc, precision, *_ = rank.evaluate_rank(
                distances, q_ids, g_ids[keep], q_cams, g_cams[keep], 50, False, cython
            )
            return float(np.mean(precision)), float(cmc[0])

        found[name] = run

    for name, checkout, package in (
        ("torchreid", torchreid, "torchreid/metrics"),
        ("fast-reid", fastreid, "fastreid/evaluation"),
    ):
        if checkout is not None:
            add(f"{name}, Cython", checkout, package, True)
            add(f"{name}, Python", checkout, package, False)
    return found


def metric_learning():
    """Pytorch-metric-learning's calculator, which takes `scene` too; junk is left out before."""
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    wanted = ("mean_average_precision", "precision_at_1")

    def run(q, g, q_ids, g_ids, *_):
        keep = g_ids != -1
        knn = CustomKNN(CosineSimilarity(), batch_size=_CHUNK)
        calculator = AccuracyCalculator(wanted, k=int(keep.sum()), knn_func=knn)
        given = map(torch.from_numpy, (q, q_ids, g[keep], g_ids[keep]))
        found = calculator.get_accuracy(*given)
        return tuple(found[name] for name in wanted)

    return {"pytorch-metric-learning": run}


def beside(given, metric):
    """MiB that an evaluation takes at its highest beyond what is there before, every 2 ms."""
    page, over = os.sysconf("SC_PAGE_SIZE"), threading.Event()

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20

    gc.collect()
    before = highest = resident()

    def watch():
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    evaluate(*given, metric=metric)
    over.set()
    watcher.join()
    return highest - before


def main():
    """Time all of them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchreid")
    parser.add_argument("--fastreid")
    parser.add_argument("--metric-learning", action="store_true")
    parser.add_argument("--memory", metavar="METRIC", help="Only what kgraft takes beside them.")
    parser.add_argument("--spread", type=float, default=0.36)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    given = scene(options.spread)
    if options.memory:
        print(f"{beside(given, options.memory):.0f} MiB beyond the features")
        return

    def ours(metric):
        def run(*own):
            found = evaluate(*own, metric=metric)
            return found.mean_precision, found.rank(1)

        return run

    contenders = {
        "the product alone": lambda q, g, *_: (product(q, g), None),
        "kgraft, cosine": ours("cosine"),
        "kgraft, Euclidean": ours("euclidean"),
        **others(options.torchreid, options.fastreid),
        **(metric_learning() if options.metric_learning else {}),
    }
    seconds, figures = {name: [] for name in contenders}, {}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.perf_counter()
            figures[name] = run(*given)
            seconds[name].append(time.perf_counter() - began)
            more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(f"  {name}: {seconds[name][-1]:.2f} s, {more / 1024:.0f} MiB more", flush=True)
    base = statistics.median(seconds["the product alone"])
    print("| | seconds | of the product | mAP | rank-1 |\n|---|---|---|---|---|")
    for name, own in seconds.items():
        middle, (precision, first) = statistics.median(own), figures[name]
        shown = "" if precision is None else f"{precision:.4%} | {first:.4%}"
        print(f"| {name} | {middle:.2f} | {middle / base:.2f} | {shown or ' | '} |")


if __name__ == "__main__":
    main()

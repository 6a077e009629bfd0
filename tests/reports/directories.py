"""Directories as runs and comparisons leave them, with numbers that follow from their place."""

import json
import math

import numpy as np


def loss(epoch, model):
    return 3.0 / epoch + model / 100


def accuracy(epoch, model):
    return 1 - 1 / (epoch + model)


def information(epoch, peer, group):
    return 1.0 + group / 10 + peer / 100 + math.sin(epoch) / 1000


def coefficient(epoch, peer, group):
    return 0.3 + 0.4 * ((epoch + 3 * peer + 5 * group) % 11) / 10


def write_lines(file, rows):
    with file.open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def write_settings(path, *, epochs, peers, teachers=0, method="graft", more=""):
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.toml").write_text(
        f'[run]\nmethod = "{method}"\nepochs = {epochs}\n{more}\n[peers]\ncount = {peers}\n'
        f"[teachers]\ncount = {teachers}\n"
    )


def write_metrics(path, *, epochs, peers, teachers=0, validation=True):
    def row(phase, model, epoch):
        held_out = {
            "val_accuracy": accuracy(epoch, model) / 2,
            "val_loss": loss(epoch, model) + 1,
        }
        return {
            "phase": phase,
            "model": model,
            "epoch": epoch,
            "lr": 0.1 / epoch,
            "accuracy": accuracy(epoch, model),
            "alpha": 0.5,
            "loss": loss(epoch, model),
            **(held_out if validation else {}),
        }

    rows = [row(f"teacher {m}", 1, e) for m in range(1, teachers + 1) for e in range(1, epochs + 1)]
    rows += [row("peers", k, e) for e in range(1, epochs + 1) for k in range(1, peers + 1)]
    write_lines(path / "metrics.jsonl", rows)


def write_grafts(path, *, epochs, peers, groups=3):
    names = [f"stage1_block{g}_conv/kernel" for g in range(groups)]
    write_lines(
        path / "grafts.jsonl",
        (
            {
                "epoch": e,
                "peer": k,
                "group": name,
                "information": information(e, k, g),
                "donor": (k - 2) % peers + 1,
                "donor_information": information(e, (k - 2) % peers + 1, g),
                "coefficient": coefficient(e, k, g),
            }
            for e in range(1, epochs + 1)
            for k in range(1, peers + 1)
            for g, name in enumerate(names)
        ),
    )


def write_summary(path, *, peers, teachers=0, validation=True):
    def row(number):
        return {
            "test_accuracy": 0.5 + number / 100,
            "validation_accuracy": 0.6 - number / 100 if validation else None,
            "best_epoch": number,
            "best_validation_accuracy": 0.7 if validation else None,
            "best_test_accuracy": 0.4,
        }

    told = {
        "method": "graft",
        "peers": [{"peer": k, "lr": 0.1, **row(k)} for k in range(1, peers + 1)],
        "teachers": [{"teacher": m, **row(m)} for m in range(1, teachers + 1)],
        "ensemble": {"test_accuracy": 0.58},
        "seconds": 90.0,
        "selected_on": "validation",
    }
    (path / "summary.json").write_text(json.dumps(told))
    (path / "environment.json").write_text(
        json.dumps({"kgraft": "0.1.0", "devices": ["cpu"], "settings": {"run.epochs": "3"}})
    )


def write_run(path, *, epochs=3, peers=2, teachers=0, groups=3, finished=True, **settings):
    """A run that was grafted; finished ones have no networks."""
    write_settings(path, epochs=epochs, peers=peers, teachers=teachers, **settings)
    write_metrics(path, epochs=epochs, peers=peers, teachers=teachers)
    write_grafts(path, epochs=epochs, peers=peers, groups=groups)
    if finished:
        write_summary(path, peers=peers, teachers=teachers)
    return path


def write_comparison(path, entries=("baseline", "graft, 2 peers"), seeds=(0, 1)):
    """A comparison whose second entry is 1 and 3 points better than the first on its seeds."""
    runs, lines = [], []
    for place, entry in enumerate(entries):
        for seed in seeds:
            write_settings(
                path / entry.replace("/", "-").replace(" ", "-") / f"seed-{seed}",
                epochs=3,
                peers=1 + place,
                more=f"seed = {seed}",
            )
            write_metrics(
                path / entry.replace("/", "-").replace(" ", "-") / f"seed-{seed}",
                epochs=3,
                peers=1 + place,
            )
            last = 0.5 + seed / 50 + place * (0.01 + 0.02 * seed)
            runs.append(
                {
                    "entry": entry,
                    "seed": seed,
                    "networks": 1,
                    "trainings": 1.0 + place,
                    "given_teachers": 0,
                    "last": last,
                    "best": last,
                    "mean_peer": last,
                    "uniform_soup": last - 0.1,
                    "ensemble": last + 0.1,
                }
            )
        gap = {"mean": 0.02, "ci95": [-0.107, 0.147]}
        lines.append({"entry": entry, "against": {entries[0]: gap if place else None}})
    (path / "comparison.json").write_text(json.dumps({"runs": runs, "entries": lines}))
    return path


def curve(value, epochs, model):
    """What a network's line has to be."""
    return np.array([value(e, model) for e in range(1, epochs + 1)])

"""`kgraft report` on runs that it has trained, and on what is none."""

import sys
from base64 import b64decode
from io import BytesIO

from PIL import Image

from tests.apps.test_fit import kgraft  # noqa: F401
from tests.reports.directories import write_comparison, write_run
from tests.reports.pages import Parsed, lines_of, plots_of

SMALL = ("--teachers", "0", "--epochs", "2", "--limit-train", "64", "--batch-size", "16")


def test_a_trained_run_has_a_page(kgraft, tmp_path):  # noqa: F811
    code, _, err = kgraft("fit", "--peers", "2", *SMALL, "--out", "own")
    assert code == 0, err
    code, out, err = kgraft("report", "own")
    assert (code, err) == (0, "")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert out == f"report.html: {len(page.encode()) / 1e6:.1f} MB\n"
    parsed = Parsed(page)
    assert [row[0] for row in parsed.tables["Invalid filters after the last epoch"]] == [
        "network",
        "peer 1",
        "peer 2",
    ]
    assert list(lines_of(plots_of(parsed), "curves-0")) == ["peer 1", "peer 2"]
    pictures = [told for kind, told in parsed.elements if kind == "img"]
    words = "Filters of own, peer {}: numbers in the tables above"
    assert [told["alt"] for told in pictures] == [words.format(k) for k in (1, 2)]
    for told in pictures:
        kind, _, content = told["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(BytesIO(b64decode(content))).width > 500
    code, out, _ = kgraft("report", "own", "-o", "other.html", "--records-only")
    assert code == 0 and "left alone" in Parsed((tmp_path / "other.html").read_text()).text


def test_mistakes_are_told_in_a_line(kgraft, tmp_path, monkeypatch):  # noqa: F811
    code, _, err = kgraft("report", "nothing")
    assert code == 2 and "nothing: neither a run's directory nor a comparison's" in err
    code, _, err = kgraft("report")
    assert code == 2 and "Missing argument" in err
    write_run(tmp_path / "own")
    write_comparison(tmp_path / "cmp")
    code, _, err = kgraft("report", "own", "-o", "own")
    assert code == 2 and "own is a directory; expected a file" in err
    code, _, err = kgraft("report", "own", "-o", "none/report.html")
    assert code == 2 and "there is no directory none" in err
    (tmp_path / "cmp/comparison.json").write_text("{")
    code, _, err = kgraft("report", "cmp")
    assert code == 2 and "comparison.json is cut off" in err and err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
    monkeypatch.delitem(sys.modules, "kgraft.analysis.report.drawn", raising=False)
    monkeypatch.delattr("kgraft.analysis.report.drawn", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh.models", None)
    code, _, err = kgraft("report", "own")
    assert code == 2 and "pip install 'kgraft[plots]'" in err

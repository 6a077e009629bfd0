import dataclasses
import gzip
import hashlib
import http.server
import tarfile
import threading

import numpy as np
import pytest

from kgraft.data.archive import download, read_archive
from kgraft.data.cifar import CIFAR10, CIFAR100
from kgraft.errors import UserError


def refusal(path, spec):
    with pytest.raises(UserError) as caught:
        read_archive(path, spec)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_published_sizes():
    # 32 * 32 * 3 pixels and one label, or two
    assert CIFAR10.archive.record_bytes == 3073
    assert CIFAR100.archive.record_bytes == 3074
    assert [m.images * 3073 for m in CIFAR10.archive.members] == [30730000] * 6
    assert [m.images * 3074 for m in CIFAR100.archive.members] == [153700000, 30740000]
    for known in (CIFAR10, CIFAR100):
        assert known.archive.count("train") == 50000
        assert known.archive.count("test") == 10000


def test_checksums_are_those_that_tfds_publishes():
    tfds = pytest.importorskip("tensorflow_datasets")
    from pathlib import Path

    for known in (CIFAR10, CIFAR100):
        spec = known.archive
        lists = Path(tfds.__file__).parent / "url_checksums" / f"{spec.name}.txt"
        lines = [line.split("\t") for line in lists.read_text().splitlines()]
        assert [spec.url, str(spec.size), spec.sha256, spec.file] in lines


def test_planes_become_channels_and_members_follow_each_other(
    tiny_cifar10, contents_of, write_archive
):
    files = contents_of(tiny_cifar10)
    archive = write_archive(tiny_cifar10.folder, files)
    contents = read_archive(archive, tiny_cifar10)
    assert contents.images["train"].shape == (20, 32, 32, 3)
    assert contents.images["test"].shape == (4, 32, 32, 3)
    # image 6 is record 2 of the second file; its green value at row 5, column 9
    record = files["data_batch_2.bin"][2 * 3073 : 3 * 3073]
    assert contents.labels["train"][6, 0] == record[0]
    assert contents.images["train"][6, 5, 9, 1] == record[1 + 1024 + 5 * 32 + 9]


def test_both_labels_of_cifar100_are_read(tiny_cifar100, contents_of, write_archive):
    files = contents_of(tiny_cifar100)
    contents = read_archive(write_archive(tiny_cifar100.folder, files), tiny_cifar100)
    assert contents.labels["test"].tolist() == [
        list(files["test.bin"][3074 * i : 3074 * i + 2]) for i in range(10)
    ]
    assert contents.class_names["label"][99] == "label_99"
    assert len(contents.class_names["coarse_label"]) == 20


def test_the_checksum_is_that_of_the_file(tiny_cifar100, contents_of, write_archive):
    path = write_archive(tiny_cifar100.folder, contents_of(tiny_cifar100))
    contents = read_archive(path, tiny_cifar100)
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_archive_is_refused(tmp_path, tiny_cifar100):
    assert "no such file" in refusal(tmp_path / "absent.tar.gz", tiny_cifar100)
    assert "is a directory" in refusal(tmp_path, tiny_cifar100)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98, 0.9999])
def test_a_truncated_archive_is_refused(tiny_cifar100, contents_of, write_archive, share):
    path = write_archive(tiny_cifar100.folder, contents_of(tiny_cifar100))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is truncated" in refusal(path, tiny_cifar100)


def test_an_archive_without_its_checksum_is_refused(tiny_cifar100, contents_of, write_archive):
    path = write_archive(tiny_cifar100.folder, contents_of(tiny_cifar100))
    path.write_bytes(path.read_bytes()[:-8])
    assert "is truncated" in refusal(path, tiny_cifar100)


@pytest.mark.parametrize("at", [0.3, 0.7, 0.9999])
def test_a_damaged_archive_is_refused(tiny_cifar100, contents_of, write_archive, at):
    path = write_archive(tiny_cifar100.folder, contents_of(tiny_cifar100))
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0xFF
    path.write_bytes(content)
    refusal(path, tiny_cifar100)


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar" * 999)])
def test_a_file_that_is_no_archive_is_refused(tmp_path, tiny_cifar100, content):
    path = tmp_path / "other.tar.gz"
    path.write_bytes(content)
    message = refusal(path, tiny_cifar100)
    assert "gzip-compressed tar archive" in message or "has no cifar-100-binary" in message


def test_another_sets_archive_is_refused(tiny_cifar10, tiny_cifar100, contents_of, write_archive):
    path = write_archive(tiny_cifar10.folder, contents_of(tiny_cifar10))
    message = refusal(path, tiny_cifar100)
    assert "has no cifar-100-binary/coarse_label_names.txt: it is not cifar-100-binary" in message
    assert "it holds cifar-10-batches-bin/batches.meta.txt" in message


def test_a_member_of_another_size_is_refused(tiny_cifar100, contents_of, write_archive):
    files = contents_of(tiny_cifar100)
    files["train.bin"] += b"\0"
    message = refusal(write_archive(tiny_cifar100.folder, files), tiny_cifar100)
    assert "train.bin has 92221 bytes; expected 92220" in message


def test_a_missing_member_is_refused(tiny_cifar100, contents_of, write_archive):
    files = contents_of(tiny_cifar100)
    del files["test.bin"]
    message = refusal(write_archive(tiny_cifar100.folder, files), tiny_cifar100)
    assert "has no cifar-100-binary/test.bin" in message


def test_a_label_out_of_range_is_refused(tiny_cifar100, contents_of, write_archive):
    files = contents_of(tiny_cifar100)
    records = bytearray(files["train.bin"])
    records[7 * 3074 + 1] = 100
    files["train.bin"] = bytes(records)
    message = refusal(write_archive(tiny_cifar100.folder, files), tiny_cifar100)
    assert "cifar-100-binary/train.bin: label of image 7 is 100; expected 0..99" in message


@pytest.mark.parametrize("names", [b"", b"one\ntwo\n", b"same\n" * 100, b"\xff" * 70000])
def test_another_list_of_names_is_refused(tiny_cifar100, contents_of, write_archive, names):
    files = contents_of(tiny_cifar100) | {"fine_label_names.txt": names}
    message = refusal(write_archive(tiny_cifar100.folder, files), tiny_cifar100)
    assert "fine_label_names.txt" in message


def test_a_link_in_a_members_place_is_refused(tmp_path, tiny_cifar100):
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"):
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.type = tarfile.SYMTYPE
            entry.linkname = "/etc/passwd"
            archive.addfile(entry)
    assert "has no cifar-100-binary/" in refusal(path, tiny_cifar100)


def test_names_with_a_leading_dot_are_the_same(tiny_cifar100, contents_of, write_archive):
    path = write_archive("./cifar-100-binary", contents_of(tiny_cifar100))
    assert read_archive(path, tiny_cifar100).images["test"].dtype == np.uint8


@pytest.fixture
def serve():
    """Serve bytes at a local address, or 404 for None; `cut` leaves that many bytes out."""
    servers = []

    def start(content: bytes | None, *, cut: int = 0) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - cut])

            def log_message(self, format, *args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/archive.tar.gz"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def published(spec, content, url):
    return dataclasses.replace(
        spec,
        url=url,
        size=len(content),
        md5=hashlib.md5(content).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


CONTENT = bytes(range(256)) * 9000


def test_a_download_is_what_was_published(serve, tmp_path):
    spec = published(CIFAR100.archive, CONTENT, serve(CONTENT))
    assert download(spec, tmp_path).read_bytes() == CONTENT
    assert download(spec, tmp_path).name == "cifar-100-binary.tar.gz"


@pytest.mark.parametrize(
    "served",
    [CONTENT[:-1], CONTENT + b"\0", b"\1" + CONTENT[1:]],
    ids=["shorter", "longer", "changed"],
)
def test_a_download_of_something_else_is_refused(serve, tmp_path, served):
    spec = published(CIFAR100.archive, CONTENT, serve(served))
    with pytest.raises(UserError, match=r"gave \d+ bytes with md5 .*; expected 2304000 bytes"):
        download(spec, tmp_path)


def test_a_cut_connection_is_refused(serve, tmp_path):
    spec = published(CIFAR100.archive, CONTENT, serve(CONTENT, cut=1000))
    with pytest.raises(UserError, match=r"cannot be fetched|gave 2303000 bytes"):
        download(spec, tmp_path)


def test_an_address_that_does_not_answer_is_refused_in_one_line(serve, tmp_path):
    spec = published(CIFAR100.archive, CONTENT, serve(None))
    with pytest.raises(UserError) as caught:
        download(spec, tmp_path)
    message = str(caught.value)
    assert message.startswith("CIFAR-100: http://127.0.0.1")
    assert "HTTP Error 404" in message
    assert "kgraft data prepare cifar100 --archive PATH" in message
    assert "\n" not in message

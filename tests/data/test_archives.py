import gzip
import io
import tarfile

import pytest

from train.data import archives
from train.data.archives import Files


def tar(path, contents: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()):
    """Writes a tar archive; compressed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return path


def _member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (_member("../outside.jpg", tarfile.REGTYPE), r"leads out of it: '\.\./outside.jpg'"),
        (_member("a/../../outside.jpg", tarfile.REGTYPE), "leads out of it"),
        (_member("a\\..\\..\\outside.jpg", tarfile.REGTYPE), "leads out of it"),
        (_member("/etc/passwd", tarfile.REGTYPE), "leads out of it: '/etc/passwd'"),
        (_member("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device: 'link.jpg'"),
        (_member("link.jpg", tarfile.LNKTYPE, "a.jpg"), "a link or a device"),
        (_member("null", tarfile.CHRTYPE), "a link or a device"),
        (_member("disk", tarfile.BLKTYPE), "a link or a device"),
        (_member("pipe", tarfile.FIFOTYPE), "a link or a device"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_archives_that_reach_out_are_refused(tmp_path, member, message, nested):
    path = tar(tmp_path / "set.tar", {"a.jpg": b"a"}, (member,))
    if nested:
        inner = path.read_bytes()
        path.unlink()
        tar(tmp_path / "outer.tar.gz", {"set.tar": inner})
    with pytest.raises(ValueError, match=message):
        list(Files(tmp_path))
    assert not (tmp_path / "a.jpg").exists()  # nothing is ever unpacked


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz"])
def test_an_archive_that_is_cut_short_is_an_error_wherever_it_was_cut(tmp_path, name):
    contents = {"a.jpg": bytes(range(256)) * 9, "b.jpg": b"b", "c.jpg": b"c" * 600}
    path = tar(tmp_path / name, contents)
    whole = path.read_bytes()
    # Past the end marker of a plain archive comes padding, without which it is still whole.
    cuts = {len(whole) * part // 40 for part in range(1, 40)} | {512, 512 + 2560, 512 + 2560 + 512}
    last_byte = 512 + 2560 + 1024 + 512 + 1024 if name == "set.tar" else len(whole)
    for cut in sorted(cut for cut in cuts if cut < last_byte):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"{name} is broken or cut short"):
            [read() for _, read in Files(tmp_path)]
    path.write_bytes(whole)
    assert {found: read() for found, read in Files(tmp_path)} == contents


def test_folders_archives_and_archives_in_archives_are_read_alike(tmp_path):
    inner = tar(tmp_path / "x" / "n01.tar", {"n01_1.JPEG": b"one"}).read_bytes()
    (tmp_path / "x" / "n01.tar").unlink()
    tar(tmp_path / "big.tar.gz", {"./train/n01.tar": inner, "./val/2.jpg": b"two" * 5000})
    tar(tmp_path / "small.tgz", {"labels/list.txt": b"list"})
    (tmp_path / "x" / "plain.txt").write_bytes(b"plain")
    found = {name: read() for name, read in Files(tmp_path)}
    assert found == {
        "x/plain.txt": b"plain",
        "labels/list.txt": b"list",
        "train/n01.tar/n01_1.JPEG": b"one",
        "val/2.jpg": b"two" * 5000,
    }
    assert list(found)[:2] == ["x/plain.txt", "labels/list.txt"]  # small archives before large ones
    assert Files(tmp_path).find("labels/list.txt", "2.jpg") == {"labels/list.txt": b"list", "2.jpg": b"two" * 5000}
    with pytest.raises(FileNotFoundError, match="no ist.txt and no other.txt in"):
        Files(tmp_path).find("ist.txt", "other.txt", "list.txt")


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz"])
@pytest.mark.parametrize("size", [2**40, 2**87, -5])
def test_a_size_that_no_archive_can_have_ends_at_once(tmp_path, name, size):
    huge = tarfile.TarInfo("a.jpg")
    huge.size = size
    path = tmp_path / name
    packed = huge.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    path.write_bytes(gzip.compress(packed) if name.endswith("gz") else packed)
    for read in (False, True):
        with pytest.raises(ValueError, match="more than|parts are left out|broken or cut short"):
            for _, contents in Files(tmp_path):
                contents() if read else None


def test_archives_in_archives_without_end_and_sparse_files_are_refused(tmp_path):
    content = tar(tmp_path / "0.tar", {"a.jpg": b"a"}).read_bytes()
    for depth in range(1, 9):
        content = tar(tmp_path / f"{depth}.tar", {f"{depth - 1}.tar": content}).read_bytes()
        (tmp_path / f"{depth - 1}.tar").unlink()
    with pytest.raises(ValueError, match="lies in too many archives"):
        list(Files(tmp_path))
    (tmp_path / "8.tar").unlink()
    tar(tmp_path / "sparse.tar", {}, (_member("a.jpg", tarfile.GNUTYPE_SPARSE),))
    with pytest.raises(ValueError, match="parts are left out"):
        list(Files(tmp_path))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("byte", [0, 100, 124, 130, 148, 156, 257, 345, 511])
def test_a_flipped_bit_in_any_header_is_no_end_of_the_archive(tmp_path, byte, nested):
    contents = {f"train/cat/{i}.jpg": bytes([i]) * 600 for i in range(4)}
    path = tar(tmp_path / "set.tar", contents)
    content = bytearray(path.read_bytes())
    content[2 * (512 + 1024) + byte] ^= 1  # the third file's header
    path.write_bytes(content)
    if nested:
        path.unlink()
        tar(tmp_path / "outer.tar.gz", {"set.tar": bytes(content)})
    with pytest.raises(ValueError, match=r"set.tar is broken or cut short: damaged header"):
        list(Files(tmp_path))


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz"])
@pytest.mark.parametrize("nested", [False, True])
def test_zeros_in_place_of_a_header_are_no_end_of_the_archive(tmp_path, name, nested):
    content = bytearray(tar(tmp_path / "a.tar", {f"{i}.jpg": bytes([i]) * 600 for i in range(9)}).read_bytes())
    (tmp_path / "a.tar").unlink()
    content[3 * 1536 : 3 * 1536 + 512] = bytes(512)  # as an unfinished download has them
    if nested:
        tar(tmp_path / name, {"set.tar": bytes(content)})
    else:
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ValueError, match="files lie behind its end"):
        list(Files(tmp_path))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_says_a_name_is_short(tmp_path, kind):
    def packed(size: int) -> bytes:
        header = _member("name", kind)
        header.size = size
        said = f"{size} comment=".encode().ljust(size - 1, b"a") + b"\n"
        return header.tobuf(tarfile.USTAR_FORMAT) + said + bytes(-size % 512)

    rest = tar(tmp_path / "set.tar", {"1.jpg": b"a"}).read_bytes()
    (tmp_path / "set.tar").write_bytes(packed(1000) + rest)
    assert [read() for _, read in Files(tmp_path)] == [b"a"]
    (tmp_path / "set.tar").write_bytes(packed(2**21) + rest)
    with pytest.raises(ValueError, match="a header of 2,097,152 bytes"):
        list(Files(tmp_path))


@pytest.mark.parametrize("nested", [False, True])
def test_what_expands_far_beyond_images_is_refused(tmp_path, monkeypatch, nested):
    monkeypatch.setattr(archives, "PACKED", (2**20, 100))
    names = {"a.jpg": bytes(2**23), "b.jpg": b"b"}
    path = tar(tmp_path / "set.tar.gz", {"list.txt": bytes(2**19)})
    assert len(list(Files(tmp_path))) == 1  # as a list of labels may shrink
    path = tar(path, names)
    if nested:
        content = path.read_bytes()
        path.unlink()
        tar(tmp_path / "outer.tar", {"set.tar.gz": content})
    with pytest.raises(ValueError, match="more is packed in it than images are, over 100 times its size"):
        list(Files(tmp_path))

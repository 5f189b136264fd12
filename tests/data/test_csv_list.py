import pytest
from PIL import Image

from tests.data.test_images import encoded
from train.data import builders, csv_list
from train.data.division import Division

PNG = encoded(Image.new("RGB", (4, 4), "red"), "png")


def _list(root, text, *files):
    for name in files or ("a.png", "b.png", "more/c.png", "more/d.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    (root / "list.csv").write_text(text, encoding="utf-8")
    return root / "list.csv"


def _read(path, **division):
    contents = csv_list.read(path, Division(**division))
    names = contents.class_names["label"]
    return {
        split: {example.file: names[example.labels["label"]] for example in examples()}
        for split, examples in contents.splits.items()
    }


EXPECTED = {"train": {"a.png": "cat", "b.png": "dog", "more/c.png": "cat", "more/d.png": "dog"}}
FORMS = {
    "a header": "file,label\na.png,cat\nb.png,dog\nmore/c.png,cat\nmore/d.png,dog\n",
    "no header": "a.png,cat\nb.png,dog\nmore/c.png,cat\nmore/d.png,dog",
    "other order, windows": "\ufeffClass;Path\r\ncat;a.png\r\ndog;b.png\r\ncat;more/c.png\r\n\r\ndog;more/d.png\r\n",
    "more columns": "id,width,label,name\n1,4,cat,a.png\n2,4,dog,b.png\n3,4,cat,more/c.png\n4,4,dog,more/d.png\n",
    "tabs, quoted": 'file\tlabel\na.png\tcat\n"b.png"\t"dog"\nmore/c.png\tcat\nmore/d.png\tdog\n',
}


@pytest.mark.parametrize("form", FORMS)
def test_lists_are_read_as_people_write_them(tmp_path, form):
    assert _read(_list(tmp_path, FORMS[form])) == EXPECTED


def test_files_may_lie_in_a_folder_beside_the_list_without_suffix(tmp_path):
    path = _list(tmp_path, "id,breed\nx,cat\ny,dog\n", "images/x.png", "images/y.png")
    assert _read(path) == {"train": {"x": "cat", "y": "dog"}}
    assert csv_list.find(tmp_path) == path
    (tmp_path / "other").mkdir()
    assert csv_list.find(tmp_path) is None  # which may be folders of classes


def test_a_column_of_splits_is_kept_and_what_is_missing_is_made(tmp_path):
    names = [f"{index}.png" for index in range(20)]
    rows = [f"{name},{'cat' if i % 2 else 'dog'},{'Test' if i < 4 else 'TRAIN'}" for i, name in enumerate(names)]
    path = _list(tmp_path, "\n".join(["file,label,split", *rows]), *names)
    found = _read(path, validation=0.25)
    assert {split: len(of_split) for split, of_split in found.items()} == {"test": 4, "train": 12, "validation": 4}
    assert sorted(found["test"]) == names[:4] and sorted(found["validation"].values()) == ["cat"] * 2 + ["dog"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,cat\ngone.png,dog\n", "lists 1 of 2 files that are not there: gone.png"),
        ("file,label\na.png,cat\na.png,dog\n", "a.png lies there twice"),
        ("file,label\na.png,cat\nb.png,\n", "has no label for b.png"),
        ("file,size,color\na.png,1,red\nb.png,2,red\n", "columns file, size, color: call the one of labels `label`"),
        ("file,label,split\na.png,cat,train\nb.png,dog,left\n", "a split is train, val or test, got 'left'"),
        ("file,label,split\na.png,cat,train\nb.png,dog,test\n", "classes without training images: dog"),
        ("file,label\na.png,cat\nb.png\n", "has 2 columns, but 1 in the row"),
        ("x,y\n1,2\n3,4\n", "no column whose entries are files"),
        ("file\na.png\n", "needs a column of files and one of labels"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        builders.prepare("pets", _list(tmp_path, text), tmp_path / "data")

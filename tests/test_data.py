import io
import multiprocessing
import pickle
import re
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from s9 import loading as dataset
from s9.augmented_batches import channel_statistics
from s9.data import Data, hold_out, subset, without_jpeg
from s9.files import save_tensors, write_whole
from s9.loading import CIFAR10_CLASSES
from utils import DataError, load_data


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("S9_DATA_DIR", raising=False)


def images_by_label(images: torch.Tensor, labels: torch.Tensor) -> set:
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


def assert_same(data: Data, expected: Data):
    assert data.classes == expected.classes
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 32, 32)
        assert labels.dtype == torch.int64
        assert images_by_label(images, labels) == images_by_label(
            getattr(expected, f"{split}_images"), getattr(expected, f"{split}_labels")
        )


def test_image_folders(image_folders, random_data, tmp_path):
    assert_same(load_data(image_folders, tmp_path / "root"), random_data)


def test_batches(batches_folder, random_data, tmp_path):
    data = load_data(batches_folder, tmp_path / "root")
    assert_same(data, random_data)
    assert torch.equal(data.train_images, random_data.train_images)  # in the order of the files
    assert data.name == "cifar-10-batches-py"  # and not CIFAR-10, of which it is a small part at most


@pytest.mark.parametrize("layout", ["image_folders", "batches_folder"])
@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_archives(layout, compression, request, random_data, tmp_path):
    folder = request.getfixturevalue(layout)
    archive = tmp_path / f"archive.tar.{compression}"
    with tarfile.open(archive, f"w:{compression}") as tar:
        tar.add(folder, folder.name)
    assert_same(load_data(archive, tmp_path / "root"), random_data)
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"cache", ".s9-lock"}  # what was unpacked is gone


def test_digits_are_scikit_learns(digits):
    images = torch.cat([digits.train_images, digits.test_images])
    assert len(images) == 1797
    assert len(digits.test_images) == 360
    small = torch.from_numpy(load_digits().images).float()
    # Each block of 4x4 pixels has, within rounding and the interpolation's reach, the brightness of the pixel it was.
    shrunk = images[:, 0].float().reshape(-1, 8, 4, 8, 4).mean((2, 4)) * 16 / 255
    ours = sorted(shrunk.mean((1, 2)).tolist())
    np.testing.assert_allclose(ours, sorted(small.mean((1, 2)).tolist()), atol=0.6)
    assert torch.equal(images[:, 0], images[:, 2])
    assert digits.classes == tuple("0123456789")


def test_environment_variable_comes_first(image_folders, batches_folder, random_data, tmp_path, monkeypatch):
    root = batches_folder.parent  # holds an "earlier download"
    assert load_data(root=root).name == "cifar-10-batches-py"
    monkeypatch.setenv("S9_DATA_DIR", str(image_folders))
    assert load_data(root=root).name == "folders"
    monkeypatch.setenv("S9_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        load_data(root=root)


def test_second_start_reads_the_cache(image_folders, tmp_path, monkeypatch):
    first = load_data(image_folders, tmp_path / "root")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    second = load_data(image_folders, tmp_path / "root")
    tensors = [field for field in Data._fields if torch.is_tensor(getattr(first, field))]
    assert len(tensors) == 6
    assert all(torch.equal(getattr(first, field), getattr(second, field)) for field in tensors)
    assert first[4:7] == second[4:7]


def test_changed_files_are_read_again(image_folders, tmp_path):
    load_data(image_folders, tmp_path / "root")
    changed = next(image_folders.rglob("*.png"))
    Image.new("RGB", (32, 32), "red").save(changed)
    images = load_data(image_folders, tmp_path / "root")
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    assert any((image == red).all() for image in torch.cat([images.train_images, images.test_images]))


def test_damaged_cache_is_made_again(image_folders, random_data, tmp_path):
    load_data(image_folders, tmp_path / "root")
    (cache,) = (tmp_path / "root" / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:1000])
    assert_same(load_data(image_folders, tmp_path / "root"), random_data)
    assert torch.load(cache, weights_only=True)


def test_grey_and_large_images_become_rgb_of_32_pixels(image_folders, tmp_path, capsys):
    folder = image_folders / "train" / "even"
    Image.new("L", (64, 48), 100).save(folder / "grey.png")
    Image.new("RGBA", (32, 32), (10, 20, 30, 255)).save(folder / "opaque.png")
    (folder / "notes.txt").write_text("no image")
    data = load_data(image_folders, tmp_path / "root")
    flat = {tuple(image[:, 0, 0].tolist()) for image in data.train_images if (image == image[:, :1, :1]).all()}
    assert flat == {(100, 100, 100), (10, 20, 30)}
    said = capsys.readouterr().out
    assert "1 files were left out" in said
    assert "1 images were resized to 32x32" in said
    assert "1 images were grey" in said


def save_animation(path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("deep.png", lambda path: Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(path), "more than 8 bits"),
        ("clear.png", lambda path: Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(path), "transparent"),
        ("moving.png", save_animation, "animated, of 3 frames"),
        ("broken.png", lambda path: path.write_bytes(b"no image"), "cannot be read"),
    ],
)
def test_images_that_are_anyones_guess_are_refused_by_name(name, save, message, image_folders, tmp_path):
    save(image_folders / "train" / "even" / name)
    with pytest.raises(DataError, match=message) as error:
        load_data(image_folders, tmp_path / "root")
    assert name in str(error.value)
    assert not (tmp_path / "root" / "cache").exists()


def test_test_images_that_are_training_images_are_counted(image_folders, tmp_path, capsys):
    for index, path in enumerate(sorted((image_folders / "train" / "odd").iterdir())[:3]):
        shutil.copy(path, image_folders / "test" / "odd" / f"again-{index}.png")
    load_data(image_folders, tmp_path / "root")
    assert "3 test images are also training images" in capsys.readouterr().out


def test_one_image_only_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "single" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "single" / split / "cat" / "a.png")
    with pytest.raises(DataError, match=r"single.*1 train images; give at least two"):
        load_data(tmp_path / "single", tmp_path / "root")


def packed(tmp_path, *members: tarfile.TarInfo) -> Path:
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(min(member.size, 10_000))))
    return archive


def member(name: str, size: int = 0, **attributes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (member("../outside.png", 10), "outside"),
        (member("/outside.png", 10), "neither data_batch_1 nor"),  # the slash is dropped, so that it lies inside
        (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link or device, link"),
        (member("hard", type=tarfile.LNKTYPE, linkname="../x"), "a link or device, hard"),
        (member("pipe", type=tarfile.FIFOTYPE), "a link or device, pipe"),
    ],
)
def test_archives_that_reach_outside_are_refused(entry, message, tmp_path):
    archive = packed(tmp_path, entry)
    with pytest.raises(DataError, match=message) as error:
        load_data(archive, tmp_path / "root")
    assert "archive.tar" in str(error.value)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".s9-lock"]
    assert not (tmp_path / "outside.png").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "LARGEST_ARCHIVE", 2**20)
    archive = tmp_path / "bomb.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for index in range(4):
            tar.addfile(member(f"zeros-{index}", 2**19), io.BytesIO(bytes(2**19)))
    assert archive.stat().st_size < 2**13
    with pytest.raises(DataError, match="unpacks to over"):
        load_data(archive, tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".s9-lock"]


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((8, 3072), np.uint8), "labels": [0, 1, 2, 0, 1, 0, 1, 0]},  # there are two classes
        {"data": np.zeros((8, 3072), np.uint8), "labels": [0, 1, -1, 0, 1, 0, 1, 0]},
        {"data": np.zeros((8, 3072), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((8, 3000), np.uint8), "labels": [0] * 8},
        {"data": np.zeros((8, 3072), np.float32), "labels": [0] * 8},
        {"labels": [0] * 8},
        [1, 2, 3],
    ],
)
def test_batches_with_labels_or_images_out_of_range_are_refused(batch, batches_folder, tmp_path):
    (batches_folder / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=r"number the classes|data_batch_3"):
        load_data(batches_folder, tmp_path / "root")


def test_broken_data_is_refused_by_name(image_folders, batches_folder, tmp_path):
    (image_folders / "train" / "neither").mkdir()
    with pytest.raises(DataError, match="neither"):
        load_data(image_folders, tmp_path / "root")
    Image.new("RGB", (32, 32)).save(image_folders / "train" / "neither" / "a.png")
    with pytest.raises(DataError, match="neither"):
        load_data(image_folders, tmp_path / "root")
    (batches_folder / "test_batch").write_bytes(b"\x80")
    with pytest.raises(DataError, match="test_batch"):
        load_data(batches_folder, tmp_path / "root")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load_data(tmp_path / "empty", tmp_path / "root")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match=r"cut\.tar\.gz"):
        load_data(tmp_path / "cut.tar.gz", tmp_path / "root")


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("exploited"),))


def test_a_pickle_that_runs_code_is_refused(batches_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (batches_folder / "data_batch_1").write_bytes(pickle.dumps({"data": Exploit()}))
    with pytest.raises(DataError, match="data_batch_1"):
        load_data(batches_folder, tmp_path / "root")
    assert not Path("exploited").exists()


def test_jpeg_training_images_can_be_left_out(image_folders, tmp_path):
    jpegs = sorted((image_folders / "train" / "odd").glob("*.png"))[:3]
    jpegs += sorted((image_folders / "test" / "odd").glob("*.png"))[:1]
    for path in jpegs:
        with Image.open(path) as image:
            image.save(path.with_suffix(".JPG"), format="JPEG")
        path.unlink()
    data = load_data(image_folders, tmp_path / "root")
    assert (int(data.train_jpeg.sum()), int(data.test_jpeg.sum())) == (3, 1)
    assert (data.train_labels[data.train_jpeg] == data.classes.index("odd")).all()
    lossless = without_jpeg(data)
    assert len(lossless.train_images) == len(data.train_images) - 3
    assert not lossless.train_jpeg.any()
    assert "3 JPEG training images left out" in lossless.copy
    assert torch.equal(lossless.test_images, data.test_images)
    kept = images_by_label(data.train_images[~data.train_jpeg], data.train_labels[~data.train_jpeg])
    assert images_by_label(lossless.train_images, lossless.train_labels) == kept
    assert int(hold_out(data, 39).test_jpeg.sum()) + int(hold_out(data, 39).train_jpeg.sum()) == 3
    assert without_jpeg(lossless) is lossless
    assert without_jpeg(load_data("digits")).train_jpeg is None


def test_hold_out_and_subset(random_data):
    held = hold_out(random_data, 10)
    kept, out = (images_by_label(getattr(held, f"{s}_images"), getattr(held, f"{s}_labels")) for s in ("train", "test"))
    everything = images_by_label(random_data.train_images, random_data.train_labels)
    assert len(out) == 10
    assert not kept & out
    assert kept | out == everything
    assert torch.equal(hold_out(random_data, 10).test_images, held.test_images)
    part = subset(random_data, 15)
    assert not torch.equal(subset(random_data, 10).train_images, held.test_images)
    assert len(part.train_images) == 15
    assert images_by_label(part.train_images, part.train_labels) < everything
    assert torch.equal(part.test_images, random_data.test_images)
    for count in (0, 40):
        with pytest.raises(DataError, match="held out"):
            hold_out(random_data, count)


# -------------------------------------------------------------------------------------------------------- the download


@pytest.mark.parametrize(
    ("failing", "told"),
    [("silent", "timed out"), ("cut", "corrupted|incomplete|retrieval"), ("moved", "corrupted"), ("missing", "404")],
)
def test_a_failing_host_is_given_up_and_named(failing, told, mirror, tmp_path, random_data, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "SILENT_HOST_SECONDS", 0.5)
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror(failing))
    with pytest.raises(DataError, match=r"127\.0\.0\.1") as error:
        load_data(root=tmp_path / "root")
    assert re.search(told, str(error.value)), error.value
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".s9-lock"]
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror(failing, "good"))
    assert_same(load_data(root=tmp_path / "root"), random_data)


def test_a_host_that_is_down_is_given_up(tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", (f"http://127.0.0.1:{port}/good",))
    with pytest.raises(DataError, match="refused"):
        load_data(root=tmp_path / "root")


def test_a_slow_host_is_waited_for(mirror, tmp_path, random_data, monkeypatch):
    monkeypatch.setattr(dataset, "SILENT_HOST_SECONDS", 0.5)
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("slow"))
    assert_same(load_data(root=tmp_path / "root"), random_data)


def test_a_silent_host_has_15_seconds():
    assert dataset.SILENT_HOST_SECONDS == 15


def test_download_takes_the_next_host_where_one_fails(mirror, tmp_path, random_data, monkeypatch):
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("missing", "wrong", "good"))
    root = tmp_path / "root"
    assert_same(load_data(root=root), random_data)
    assert sorted(path.name for path in root.iterdir()) == [".s9-lock", "cache", "cifar-10-python.tar.gz"]
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("missing"))
    assert_same(load_data(root=root), random_data)  # the earlier download


def test_without_any_host_it_is_said_what_to_do_and_nothing_is_left_behind(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("missing", "wrong"))
    with pytest.raises(DataError, match=r"put cifar-10-python.tar.gz into .*root/ by hand.*404"):
        load_data(root=tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".s9-lock"]


def test_an_archive_put_there_by_hand_is_checked(mirror, batches_folder, tmp_path, random_data):
    """The fixture `mirror` sets the md5 of its own archive as CIFAR-10's."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(tmp_path / "host" / "good", root / "cifar-10-python.tar.gz")
    assert_same(load_data(root=root), random_data)
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:  # a part of it
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            tar.add(batches_folder / name, f"cifar-10-batches-py/{name}")
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz is not CIFAR-10's archive, or incomplete"):
        load_data(root=root)


def test_a_folder_that_lacks_a_batch_is_refused(batches_folder, tmp_path):
    (batches_folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4"):
        load_data(batches_folder, tmp_path / "root")


@pytest.mark.parametrize(
    "name", ["thesis.tmp", "cache.tmp/notes.txt", "unpack-1.tmp", ".s9-notes", "lock", "a.pt.123.tmp"]
)
def test_files_of_the_users_own_stay(name, image_folders, tmp_path):
    """Beside the cache, whatever they are called, also after a load that was killed."""
    root = tmp_path / "root"
    own = root / name
    own.parent.mkdir(parents=True)
    own.write_text("important")
    left = root / ".s9-unfinished-123" / "unpacked"
    left.mkdir(parents=True)
    (left / "half").write_text("of a killed process")
    load_data(image_folders, root)
    assert own.read_text() == "important"
    assert not (root / ".s9-unfinished-123").exists()


def _write_often(folder, name: str, failures) -> None:
    for _ in range(300):
        try:
            write_whole(folder / name, lambda path: path.write_text("x"))
        except OSError as error:
            failures.put(repr(error))


def test_writers_of_files_side_by_side_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    processes = [context.Process(target=_write_often, args=(tmp_path, name, failures)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()


def test_an_image_in_an_archive_is_named_by_its_place_there(image_folders, tmp_path):
    (image_folders / "train" / "even" / "broken.png").write_bytes(b"no image")
    with tarfile.open(tmp_path / "archive.tar", "w") as tar:
        tar.add(image_folders, "mine")
    with pytest.raises(DataError, match=r"archive\.tar/mine/train/even/broken\.png cannot be read"):
        load_data(tmp_path / "archive.tar", tmp_path / "root")


def test_an_archive_of_cifar10s_name_is_checked_wherever_it_is(batches_folder, tmp_path):
    with tarfile.open(tmp_path / dataset.CIFAR10_ARCHIVE, "w:gz") as tar:
        tar.add(batches_folder, batches_folder.name)
    with pytest.raises(DataError, match="not CIFAR-10's archive"):
        load_data(tmp_path / dataset.CIFAR10_ARCHIVE, tmp_path / "root")


def test_a_linked_folder_is_never_cleaned(image_folders, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis").write_text("important")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".s9-unfinished-1").symlink_to(elsewhere)
    load_data(image_folders, tmp_path / "root")
    assert (elsewhere / "thesis").read_text() == "important"


def test_what_was_done_to_the_images_is_said_at_every_load(image_folders, tmp_path, capsys):
    Image.new("L", (64, 48), 100).save(image_folders / "train" / "even" / "grey.png")
    load_data(image_folders, tmp_path / "root")
    first = capsys.readouterr().out
    assert "1 images were resized" in first
    load_data(image_folders, tmp_path / "root")
    assert capsys.readouterr().out == first


def test_copies_of_one_training_image_all_count(image_folders, tmp_path, capsys):
    path = next((image_folders / "train" / "odd").iterdir())
    for index in range(7):
        shutil.copy(path, image_folders / "test" / "odd" / f"again-{index}.png")
    load_data(image_folders, tmp_path / "root")
    assert "7 test images are also training images" in capsys.readouterr().out


def test_every_flipped_bit_in_the_cache_is_noticed(image_folders, random_data, tmp_path, capsys):
    load_data(image_folders, tmp_path / "root")
    (cache,) = (tmp_path / "root" / "cache").iterdir()
    whole = cache.read_bytes()
    places = torch.linspace(0, len(whole) - 1, 40).long().tolist()
    for number, place in enumerate(places):
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << number % 8]) + whole[place + 1 :])
        assert_same(load_data(image_folders, tmp_path / "root"), random_data)
        assert f"{cache} is damaged" in capsys.readouterr().out
        assert cache.read_bytes() == whole


def test_a_cache_that_holds_something_else_is_made_again(image_folders, random_data, tmp_path):
    load_data(image_folders, tmp_path / "root")
    (cache,) = (tmp_path / "root" / "cache").iterdir()
    wrong_shapes = (*[torch.zeros(3)] * 4, ("a", "b"), "x", "y")
    for content in ((wrong_shapes, []), {"a": 1}, (tuple(random_data._replace(classes=("a",))), [])):
        save_tensors(content, cache)
        assert_same(load_data(image_folders, tmp_path / "root"), random_data)


def test_a_cache_that_cannot_be_written_is_a_warning(image_folders, random_data, tmp_path, capsys):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cache").write_text("a file where the folder should be")
    assert_same(load_data(image_folders, tmp_path / "root"), random_data)
    assert "cannot be written" in capsys.readouterr().out


def test_a_root_that_is_a_file_is_refused(image_folders, tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(DataError, match="root cannot be used"):
        load_data(image_folders, tmp_path / "root")


def test_cifar10_is_whole(cifar10):
    assert cifar10.train_images.shape == (50_000, 3, 32, 32)
    assert cifar10.classes == CIFAR10_CLASSES
    assert cifar10.train_labels.bincount().tolist() == [5000] * 10
    assert cifar10.test_labels.bincount().tolist() == [1000] * 10
    mean, std = channel_statistics(cifar10.train_images)
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0)

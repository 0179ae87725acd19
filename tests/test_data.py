import http.server
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import dataset
import utils
from utils import DataError, load_data


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("S9_DATA_DIR", raising=False)


@pytest.fixture
def batches_folder(tmp_path, random_data) -> Path:
    """`random_data` laid out as CIFAR-10's authors do: pickled rows of bytes, in five files and one."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = {f"data_batch_{k + 1}": slice(8 * k, 8 * k + 8) for k in range(5)}
    content = {name: (random_data.train_images[part], random_data.train_labels[part]) for name, part in files.items()}
    content["test_batch"] = (random_data.test_images, random_data.test_labels)
    for name, (images, labels) in content.items():
        batch = {"data": images.reshape(len(images), -1).numpy(), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(random_data.classes)}, protocol=2))
    return folder


def images_by_label(images: torch.Tensor, labels: torch.Tensor) -> set:
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


def assert_same(data: utils.Data, expected: utils.Data):
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
    assert data.name == "CIFAR-10"


@pytest.mark.parametrize("layout", ["image_folders", "batches_folder"])
@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_archives(layout, compression, request, random_data, tmp_path):
    folder = request.getfixturevalue(layout)
    archive = tmp_path / f"archive.tar.{compression}"
    with tarfile.open(archive, f"w:{compression}") as tar:
        tar.add(folder, folder.name)
    assert_same(load_data(archive, tmp_path / "root"), random_data)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["cache"]  # what was unpacked is gone


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
    assert load_data(root=root).name == "CIFAR-10"
    monkeypatch.setenv("S9_DATA_DIR", str(image_folders))
    assert load_data(root=root).name == "folders"
    monkeypatch.setenv("S9_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        load_data(root=root)


def test_second_start_reads_the_cache(image_folders, random_data, tmp_path, monkeypatch):
    first = load_data(image_folders, tmp_path / "root")
    monkeypatch.setattr(dataset, "_read_folder", lambda *_: pytest.fail("decoded again"))
    second = load_data(image_folders, tmp_path / "root")
    assert all(torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))
    assert first[4:] == second[4:]


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


def test_grey_transparent_and_large_images_become_rgb_of_32_pixels(image_folders, tmp_path, capsys):
    folder = image_folders / "train" / "even"
    Image.new("L", (64, 48), 100).save(folder / "grey.png")
    Image.new("RGBA", (32, 32), (10, 20, 30, 128)).save(folder / "transparent.png")
    data = load_data(image_folders, tmp_path / "root")
    flat = {tuple(image[:, 0, 0].tolist()) for image in data.train_images if (image == image[:, :1, :1]).all()}
    assert flat == {(100, 100, 100), (10, 20, 30)}
    assert "1 images were resized to 32x32" in capsys.readouterr().out


def test_broken_data_is_refused_by_name(image_folders, batches_folder, tmp_path):
    broken = image_folders / "test" / "odd" / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        load_data(image_folders, tmp_path / "root")
    broken.unlink()
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


def test_hold_out_and_subset(random_data):
    held = utils.hold_out(random_data, 10)
    kept, out = (images_by_label(getattr(held, f"{s}_images"), getattr(held, f"{s}_labels")) for s in ("train", "test"))
    everything = images_by_label(random_data.train_images, random_data.train_labels)
    assert len(out) == 10
    assert not kept & out
    assert kept | out == everything
    assert torch.equal(utils.hold_out(random_data, 10).test_images, held.test_images)
    part = utils.subset(random_data, 15)
    assert len(part.train_images) == 15
    assert images_by_label(part.train_images, part.train_labels) < everything
    assert torch.equal(part.test_images, random_data.test_images)
    for count in (0, 40):
        with pytest.raises(DataError, match="held out"):
            utils.hold_out(random_data, count)


# -------------------------------------------------------------------------------------------------------- the download


@pytest.fixture
def mirror(tmp_path, batches_folder, monkeypatch):
    """A local host: /good serves an archive with the right md5, /wrong another one, /missing nothing."""
    folder = tmp_path / "host"
    folder.mkdir()
    with tarfile.open(folder / "good", "w:gz") as tar:
        tar.add(batches_folder, batches_folder.name)
    (folder / "wrong").write_bytes(b"<html>come back later</html>")
    from torchvision.datasets.utils import calculate_md5

    monkeypatch.setattr(dataset, "CIFAR10_MD5", calculate_md5(folder / "good"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda *names: tuple(f"http://127.0.0.1:{server.server_port}/{name}" for name in names)
        server.shutdown()


def test_download_takes_the_next_host_where_one_fails(mirror, tmp_path, random_data, monkeypatch):
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("missing", "wrong", "good"))
    root = tmp_path / "root"
    assert_same(load_data(root=root), random_data)
    assert sorted(path.name for path in root.iterdir()) == ["cache", "cifar-10-python.tar.gz"]
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("missing"))
    assert_same(load_data(root=root), random_data)  # the earlier download


def test_without_any_host_the_digits_stand_in_and_nothing_is_left_behind(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "CIFAR10_MIRRORS", mirror("missing", "wrong"))
    data = load_data(root=tmp_path / "root")
    assert data.name == "digits"
    said = [line for line in capsys.readouterr().out.splitlines() if "digits" in line]
    assert len(said) == 1
    assert "404" in said[0]
    assert not list((tmp_path / "root").iterdir())


def test_cifar10_is_whole(cifar10):
    assert cifar10.train_images.shape == (50_000, 3, 32, 32)
    assert cifar10.classes == utils.CIFAR10_CLASSES
    assert cifar10.train_labels.bincount().tolist() == [5000] * 10
    assert cifar10.test_labels.bincount().tolist() == [1000] * 10
    mean, std = utils.channel_statistics(cifar10.train_images)
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0)

"""What several tests need: small data sets, and real CIFAR-10 where there is a copy."""

import http.server
import os
import pickle
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.utils import calculate_md5

import utils
from s9 import loading as dataset
from s9.data import Data


@pytest.fixture(scope="session")
def digits() -> Data:
    return utils.load_data("digits")


@pytest.fixture(scope="session")
def cifar10() -> Data:
    if not os.environ.get("S9_DATA_DIR"):
        pytest.skip("needs CIFAR-10: set S9_DATA_DIR to a copy")
    return utils.load_data()


@pytest.fixture
def random_data() -> Data:
    """Coloured noise, so that each image differs from all others: 40 training and 20 test images of two classes."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int):
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return images, torch.arange(count) % 2

    return Data(*split(40), *split(20), ("even", "odd"), "noise", "made for tests")


@pytest.fixture
def image_folders(tmp_path, random_data):
    """train/<class>/ and test/<class>/ of PNG files that hold `random_data`."""
    for split in ("train", "test"):
        images, labels = getattr(random_data, f"{split}_images"), getattr(random_data, f"{split}_labels")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "folders" / split / random_data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03}.png")
    return tmp_path / "folders"


@pytest.fixture
def state_of_numpy_and_torch():
    """A call that tells the random states, to compare before and after."""
    return lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002


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


@pytest.fixture
def mirror(tmp_path, batches_folder, monkeypatch):
    """A local host: /good and /slow serve an archive with the right md5, /wrong a page, /moved leads there, /cut
    ends in the middle, /silent says nothing, /missing is not there.
    """
    folder = tmp_path / "host"
    folder.mkdir()
    with tarfile.open(folder / "good", "w:gz") as tar:
        tar.add(batches_folder, batches_folder.name)
    (folder / "wrong").write_bytes(b"<html>come back later</html>")
    monkeypatch.setattr(dataset, "CIFAR10_MD5", calculate_md5(folder / "good"))

    class Host(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_):
            pass

        def do_GET(self):
            content = (folder / "good").read_bytes()
            if self.path == "/silent":
                time.sleep(3)
            elif self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/wrong")
                self.end_headers()
            elif self.path in ("/cut", "/slow"):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for start in range(0, len(content) // (2 if self.path == "/cut" else 1), 4096):
                    self.wfile.write(content[start : start + 4096])
                    time.sleep(0.02 if self.path == "/slow" else 0)
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda *names: tuple(f"http://127.0.0.1:{server.server_port}/{name}" for name in names)
        server.shutdown()

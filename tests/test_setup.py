"""What is missing or too old is installed, and what is new enough stays."""

from s9 import setup


def test_only_what_is_missing_or_too_old_lacks(monkeypatch):
    here = {"torch": "2.8.0+cu126", "tqdm": "4.66", "numpy": "1.25.2", "Pillow": "12.0.0", "onnx": "1.19.0rc1"}

    def version(name: str) -> str:
        if name not in here:
            raise setup.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(setup, "version", version)
    text = """# a comment
    torch>=2.7
    tqdm>=4.66
    numpy>=1.26
    Pillow>=11.3
    onnx>=1.18

    grad-cam>=1.5.7  # the first that needs no window system
    jupyter>=1.1.1
    """
    assert setup.lacking(text) == ["numpy>=1.26", "grad-cam>=1.5.7"]


def test_here_nothing_lacks():
    assert setup.lacking(setup.REQUIREMENTS.read_text()) == []

"""`python train.py NAME` is `python -m scripts.train NAME`."""

from scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Programs, run from the kit's folder as `python -m scripts.NAME`."""

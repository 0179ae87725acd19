"""Tries what goes wrong in other people's hands, area by area: `python -m scripts.tries [AREA...]`."""

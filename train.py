"""Trains one of the course's networks without a notebook: python train.py NAME."""
import argparse
import torch
import models
from utils import SEED_RECIPE, load_data, train

if __name__ == "__main__":
    data = load_data("data/cifar10")
    torch.manual_seed(SEED_RECIPE.seed)
    train(models.SeedNet(apply_relu=False), data, SEED_RECIPE, run="seednet")

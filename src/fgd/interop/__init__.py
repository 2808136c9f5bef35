"""Weights in and out: safetensors files, PyTorch's state dicts."""

from fgd.interop._safetensors import load as load, save as save
from fgd.interop._torch import from_torch as from_torch, to_torch as to_torch

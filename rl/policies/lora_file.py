"""TEMP"""

from safetensors.numpy import load_file


def read_adapter(file, modules=None):
    return load_file(file)


def rescaled(a, rank, alpha):
    return a

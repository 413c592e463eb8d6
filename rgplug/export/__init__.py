"""Generators to take away: baked (the host's own network with zeros in place) and as sparse files.

A pruned weight in a dense tensor makes nothing smaller; a sparse file is smaller on disk, and gives the dense tensors
back when it is read.
"""

from rgplug.export.bake import bake
from rgplug.export.checkpoint import export_checkpoint
from rgplug.export.onnx_file import OnnxCheck, save_onnx
from rgplug.export.sparse_file import load_sparse, read_sparse, save_sparse

__all__ = ["OnnxCheck", "bake", "export_checkpoint", "load_sparse", "read_sparse", "save_onnx", "save_sparse"]

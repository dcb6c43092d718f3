"""Checkpoints on the disk: reading, writing, verifying them, and going on where writing was interrupted.

A checkpoint is a directory as transformers writes it: safetensors in one file or in shards, config.json, tokenizer.

    reader    names, shapes and single tensors, without a model
    load      a model, its configuration, its tokenizer; streamed: a model of which one block at a time is in memory
    save      a model in memory as a directory; writer, shards: tensors that are made one after another
    output    a directory or a file that appears whole or not at all; resume: one whose making can be interrupted
    verify    is it what was written, and does it load everywhere? fresh: in a process without this package, too
"""

from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
from mcsmoe.checkpoint.output import atomic_directory, write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.resume import Store, identity, resumable_directory, source_code
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.shards import Part, write_parts
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.checkpoint.verify import probe_batch, verify_checkpoint, verify_stock
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, write_safetensors

__all__ = [
    "Checkpoint",
    "Part",
    "Piece",
    "Store",
    "TensorSpec",
    "Written",
    "atomic_directory",
    "identity",
    "load_config",
    "load_model",
    "load_streamed",
    "load_tokenizer",
    "probe_batch",
    "resumable_directory",
    "save_model",
    "source_code",
    "verify_checkpoint",
    "verify_stock",
    "write_json",
    "write_parts",
    "write_safetensors",
]

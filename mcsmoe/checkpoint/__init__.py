"""Reading, writing and verifying checkpoints, and resuming a write that was interrupted.

A checkpoint is a directory as transformers writes it: safetensors in one file or in shards, config.json, tokenizer.

    source      a directory, or an id on the model hub
    paths       files that a checkpoint names stay inside it
    reader      names, shapes and single tensors, without a model
    header      the same of one safetensors file
    fp8         weights in FP8 with a scale for each block, restored
    published   the tensors under the names that their family publishes, without those that nobody reads
    config      config.json, and the dtype that it should name
    pickled     old `.bin` files
    load        a model and its configuration
    tokenizer   its tokenizer
    streamed    a model with one block in memory at a time
    lockstep    forward passes of such a model, all through one block before the next
    journal     progress of these passes on disk, so that an interrupted run resumes
    save        a model in memory → a directory
    companions  what lies beside weights and config.json, and travels with every model made of them
    older       the names that older programs look for
    writer      tensors that are made one after another → one file
    shards      the same → one file or shards, with their index
    output      a directory or file that appears whole or not at all
    content     hashes of what an output depends on
    resume      the same, but an interrupted write continues in the next run
    verify      checks that a checkpoint holds what was written, and loads
    fresh       loads it in a process that does not have this package
"""

from mcsmoe.checkpoint.content import identity, source_code
from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.output import atomic_directory, write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.resume import Store, resumable_directory
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.shards import Part, write_parts
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.checkpoint.tokenizer import load_tokenizer
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

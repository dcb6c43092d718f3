"""Forward passes of several batches in lockstep: all finish one block before any enters the next.

So each block's weights are read once for all batches, and one block is in memory at a time. Everything around the
blocks (embeddings, masks, positions, encoder states for a decoder) is left to the model's own `forward`.
`run_forwards` is the way in for whoever does not care whether a model is streamed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from mcsmoe.checkpoint.journal import Call, Journal
from mcsmoe.checkpoint.streamed import Blocks, blocks_of
from mcsmoe.progress import progress


# BaseException, so that no `except Exception` in a model catches these.
class Enough(BaseException):
    """Ends a forward pass early, once the rest is not needed."""


class _Stopped(BaseException):
    """Unwinds the thread of a stopped pass."""


class _Pass:
    """One forward pass in its own thread, which sleeps until it is told to continue."""

    def __init__(self, forward: Callable[[], object]) -> None:
        self._calls: SimpleQueue[Call | BaseException | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        # Settings of a thread that its passes must share, as if all ran in one; modes are what counts operations.
        settings = torch.get_num_threads(), _get_current_dispatch_mode_stack()
        self._thread = Thread(target=self._work, args=(forward, *settings), daemon=True)
        self.call: Call | None = None

    def start(self) -> None:
        """Run up to the first block."""
        self._thread.start()
        self._wait()

    def answer(self, output: Any) -> None:
        """Continue with the block's output up to the next block; at the end of the pass, `call` is None."""
        self.call = None  # free these arguments before the next ones are made
        self._answers.put(output)
        self._wait()

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self.call = None
        if self._thread.is_alive():
            self._answers.put(_Stopped)
            self._thread.join()

    def ask(self, call: Call) -> Any:
        """Called in the thread: hand over `call` and sleep until its output arrives."""
        self._calls.put(call)
        del call
        answer = self._answers.get()
        if answer is _Stopped:
            raise _Stopped
        return answer

    def _wait(self) -> None:
        found = self._calls.get()
        if isinstance(found, BaseException):
            raise found
        self.call = found

    def _work(self, forward: Callable[[], object], threads: int, modes: Sequence[TorchDispatchMode]) -> None:
        torch.set_num_threads(threads)
        result: BaseException | None = None
        try:
            with torch.no_grad(), ExitStack() as stack:
                for mode in modes:
                    stack.enter_context(mode)
                forward()
        except _Stopped:
            pass
        except BaseException as error:
            result = error
        self._calls.put(result)


PASSES = 128
"""The most passes of `run_forwards` at a time: each is a thread, of which systems allow only so many."""


def run_forwards(
    model: nn.Module,
    forwards: Sequence[Callable[[], object]],
    description: str,
    show: bool = True,
    at_once: int | None = None,
) -> None:
    """Run `forwards`, each of which calls `model` once: in turn if it is whole in memory, else in `lockstep`.

    Either way their results have the same bits. Each should keep only what is small, such as sums: what it keeps of a
    batch stays in memory until the end. At most `at_once` of them share one reading of a streamed model; None or a
    number above `PASSES` stands for that.
    A progress bar called `description` counts forwards, or blocks. Call it without gradients. Raises what a forward
    raises, and for a streamed model what loading a block raises.
    """
    blocks = blocks_of(model)
    if blocks is None:
        for forward in progress(forwards, description, show=show):
            forward()
        return
    starts = range(0, len(forwards), min(at_once or PASSES, PASSES))
    with progress(None, f"{description}, blocks", len(starts) * len(blocks.names), show) as bar:
        for start in starts:
            for _ in lockstep(model, blocks, forwards[start : start + starts.step], lambda i: None):
                bar.update()


@torch.no_grad()
def logits_of(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a model, whole or streamed, on one batch."""
    found: list[Tensor] = []
    blocks = blocks_of(model)
    with blocks.reusing() if blocks else nullcontext():
        run_forwards(model, [lambda: found.append(model(**inputs).logits)], "forward", show=False)
    return found[0]


def lockstep(
    model: nn.Module,
    blocks: Blocks,
    forwards: Sequence[Callable[[], object]],
    enter: Callable[[int], None],
    journal: Journal | None = None,
) -> Iterator[str]:
    """Run `forwards` with one block in memory at a time; yield each block's name once all forwards have finished it.

    Each forward is a call of `model`, and may end early by raising `Enough` inside a block. They take turns in their
    order, only one runs at any moment, and blocks run in the calling thread. `enter(i)` is called before forward i
    enters a block. What a forward raises is raised here, after all threads are stopped.
    Peak memory: everything outside the blocks, one block, and what each forward keeps between two blocks (hidden
    states, masks, positions). Blocks that `journal` holds from an earlier run are skipped. A yielded block is
    recorded in it when the caller asks for the next one.
    """
    passes = [_Pass(forward) for forward in forwards]
    running: list[_Pass] = []
    with ExitStack() as stack:
        for each in passes:
            stack.callback(each.stop)
        real = stack.enter_context(_halting(model, blocks, lambda call: running[0].ask(call)))
        for each in passes:
            running[:] = [each]
            each.start()
        if journal:
            for i, each in enumerate(passes):
                running[:] = [each]
                _replay(each, journal, i)
        bar = stack.enter_context(progress(None, "blocks for all batches", len(blocks.names), late=True))
        while waiting := [each for each in passes if each.call is not None]:
            block = min((each.call.block for each in waiting if each.call), key=blocks.names.index)
            with blocks.loaded(block):
                for i, each in enumerate(passes):
                    if each.call is not None and each.call.block == block:
                        running[:] = [each]
                        enter(i)
                        _go_on(each, real[block], journal, i)
            bar.update()
            yield block
            if journal:
                journal.passed(block, [each.call for each in passes])


def _replay(each: _Pass, journal: Journal, i: int) -> None:
    """Bring pass i back to the call where the earlier run stopped."""
    owner, output = "", None
    while each.call is not None and each.call.block in journal.blocks:
        if owner != (owner := each.call.owner):
            output = journal.output(owner, i)
        each.answer(output)
    journal.check(i, each.call)


def _go_on(each: _Pass, block: Callable[..., Any], journal: Journal | None, i: int) -> None:
    """Run the block that pass i waits for and continue the pass; it may then wait at the same block again."""
    call = each.call
    assert call is not None
    try:
        output = block(*call.args, **call.kwargs)
    except Enough:
        each.stop()
        return
    if journal:
        journal.keep(call.block, i, output)
    del call
    each.answer(output)


@contextmanager
def _halting(model: nn.Module, blocks: Blocks, ask: Callable[[Call], Any]) -> Iterator[dict[str, Callable[..., Any]]]:
    """Replace each block's `forward` by a request to `ask`; yield the original ones by block name."""
    real: dict[str, Callable[..., Any]] = {}

    def asking(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: ask(Call(name, args, kwargs))

    with ExitStack() as stack:
        for name in blocks.names:
            module = model.get_submodule(name)
            real[name] = module.forward
            stack.callback(delattr, module, "forward")
            module.forward = asking(name)
        yield real

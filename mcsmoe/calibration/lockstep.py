"""Forward passes of several batches side by side: all go through one block before any goes through the next.

So a block's weights are read once for all batches, and only one block is in memory. Whatever a model does around its
blocks (embeddings, masks, positions, what an encoder gives to a decoder) is done by its own forward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import nn

from mcsmoe.calibration.journal import Call, Journal
from mcsmoe.checkpoint.streamed import Blocks
from mcsmoe.progress import progress


# No `except Exception` of a model is to catch these.
class Enough(BaseException):
    """Ends a forward pass whose rest nobody needs."""


class _Stopped(BaseException):
    """Unwinds the thread of a pass that is not to go on."""


class _Pass:
    """One forward pass, in a thread of its own, which sleeps whenever it is not asked to go on."""

    def __init__(self, forward: Callable[[], object]) -> None:
        self._calls: SimpleQueue[Call | BaseException | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._thread = Thread(target=self._work, args=(forward, torch.get_num_threads()), daemon=True)
        self.call: Call | None = None

    def start(self) -> None:
        """Run up to the first block."""
        self._thread.start()
        self._wait()

    def answer(self, output: Any) -> None:
        """Go on with the block's output up to the next block; `call` is None at the end."""
        self.call = None  # the arguments go before the next ones come
        self._answers.put(output)
        self._wait()

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self.call = None
        if self._thread.is_alive():
            self._answers.put(_Stopped)
            self._thread.join()

    def ask(self, call: Call) -> Any:
        """In the thread: hand `call` over and sleep until its output is there."""
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

    def _work(self, forward: Callable[[], object], threads: int) -> None:
        torch.set_num_threads(threads)  # of this thread, like the gradient's mode
        result: BaseException | None = None
        try:
            with torch.no_grad():
                forward()
        except _Stopped:
            pass
        except BaseException as error:
            result = error
        self._calls.put(result)


def lockstep(
    model: nn.Module,
    blocks: Blocks,
    forwards: Sequence[Callable[[], object]],
    enter: Callable[[int], None],
    journal: Journal | None = None,
) -> Iterator[str]:
    """Run `forwards`, each a call of `model` that may end by `Enough` inside a block, one block in memory at a time.

    Everything runs in the order of `forwards`, one at a time, and blocks in this thread: `enter(i)` is called before
    forward i goes into a block, and a block is yielded after the last one came out of it. What a forward raises is
    raised here, and nothing is left running. Peak memory: what is outside the blocks, one block, and what each
    forward keeps between two blocks: its hidden states, masks and positions. Blocks that `journal` knows from an
    earlier run are not run again; it takes down those that are yielded, when the next one is asked for.
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
            with _loaded(blocks, block):
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
    """Take a pass, the i-th, to where it was."""
    owner, output = "", None
    while each.call is not None and each.call.block in journal.blocks:
        if owner != (owner := each.call.owner):
            output = journal.output(owner, i)
        each.answer(output)
    journal.check(i, each.call)


def _go_on(each: _Pass, block: Callable[..., Any], journal: Journal | None, i: int) -> None:
    """Give a pass, the i-th, what it waits for; it may be at the same block again then."""
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
    """Let the forward of each block ask; yields the real ones."""
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


@contextmanager
def _loaded(blocks: Blocks, block: str) -> Iterator[None]:
    try:
        blocks.load(block)
        yield
    finally:
        blocks.free(block)

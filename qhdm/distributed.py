"""The processes of one command, as torchrun starts them: who is who, and what they tell each other.

Without a launcher there is one process: nothing here costs anything then, or imports torch.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from qhdm.errors import ConfigError, DistributedError, PeerFailed, QhdmError, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

E = TypeVar("E", bound=QhdmError)

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: A lost process closes its connections, which is noticed at once; this is for one that hangs. It
#: must be longer than what one process may do alone: a batch of images on Aer can take hours.
_TIMEOUT = timedelta(hours=12)


#: Between looks for an answer of another process, seconds.
_POLL = 0.02


@dataclass(frozen=True)
class World:
    """The processes that work on one command together.

    All of them compute, each on its share; process 0 alone writes and speaks. Collective methods
    are called by all processes in the same order.

    Attributes:
        rank: of this process, from 0 to `size` - 1.
        size: how many there are.
        local_rank, local_size: the same among those on this machine.
        launch: tells this launch from others, and is the same when the launcher starts the
            processes again; None without torchrun.
        restarts: how many times torchrun may do so (--max-restarts).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launch: str | None = None
    restarts: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun, or another launcher with the same variables, says; else one process.

        Raises:
            ConfigError: a variable is not a number, or out of range.
        """
        if not all(name in os.environ for name in _NEEDED):
            return cls()
        size = _number("WORLD_SIZE", least=1)
        local_size = _number("LOCAL_WORLD_SIZE", least=1, absent=size)
        return cls(
            rank=_number("RANK", below=size),
            size=size,
            local_rank=_number("LOCAL_RANK", below=local_size, absent=0),
            local_size=local_size,
            launch=_launch(),
            restarts=_number("TORCHELASTIC_MAX_RESTARTS", absent=0),
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int, *, whole: int = 1) -> slice:
        """This process's part of a row of `count` things: no process has two pieces more.

        Args:
            count: how many things.
            whole: they stay together in pieces of so many, counted from the first.
        """
        pieces = -(-count // whole)
        start, end = (
            min(count, pieces * rank // self.size * whole) for rank in (self.rank, self.rank + 1)
        )
        return slice(start, end)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within, the processes can talk: by gloo between CPUs, by NCCL between GPUs.

        Raises:
            DistributedError: they do not find each other.
        """
        if self.size == 1:
            yield
            return
        import torch
        from torch import distributed

        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        try:
            store, rank, size = next(distributed.rendezvous("env://", timeout=_TIMEOUT))
            distributed.init_process_group(
                backend,
                store=distributed.PrefixStore(_name_of_start(store, rank, size), store),
                rank=rank,
                world_size=size,
                timeout=_TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"process {self.rank} of {self.size} does not reach the others at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_line(error)})"
            ) from None
        yield
        # Not after an error: there, the others may be gone, and leaving closes everything.
        distributed.destroy_process_group()

    def add_up(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the processes, bit by bit the same on each."""
        if self.size > 1:
            from torch import distributed

            with self._contact():
                distributed.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. Does not wait for a GPU."""
        if self.size == 1:
            return flag
        import torch

        count = torch.tensor([int(flag)])
        self.add_up(count)
        return bool(count)

    def broadcast(self, text: str) -> str:
        """The text that process 0 has."""
        return self.gather(text.encode() if self.first else b"")[0].decode()

    def gather(self, data: bytes) -> list[bytes]:
        """What each process has, in the order of ranks, for all of them."""
        if self.size == 1:
            return [data]
        import torch
        from torch import distributed

        length = torch.tensor([len(data)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        with self._contact():
            distributed.all_gather(lengths, length)
        longest = max(1, *(int(found) for found in lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._contact():
            distributed.all_gather(found, padded)
        return [
            bytes(tensor[: int(own)].numpy()) for tensor, own in zip(found, lengths, strict=True)
        ]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.any(False)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Let all processes get through the body, or none: an error in one ends all of them.

        The first process that has an error raises it, the others `PeerFailed`.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = [bool(found) for found in self.gather(b"" if error is None else b"failed")]
        if True not in failed:
            return
        if error is not None and failed.index(True) == self.rank:
            raise error
        raise PeerFailed(f"process {failed.index(True)} failed")

    def common(self, error: E) -> E | PeerFailed:
        """What to raise for an error that all processes find at once: only one speaks."""
        return error if self.first else PeerFailed(str(error))

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of no type of its own, in gloo as in NCCL
            lost = DistributedError(
                f"lost contact with another process ({first_line(error)}); what was saved last "
                "stands, and torchrun --max-restarts N goes on from there by itself"
            )
            raise self.common(lost) from None


def _name_of_start(store: Store, rank: int, size: int) -> str:
    """A name for this start of the processes, the same for all of them and never used before.

    torchrun may keep one store over its restarts, with the addresses of processes that are gone,
    and its counts of restarts differ between machines that came at different times. So process 0
    makes up a name, and each of the others takes one only when it has been answered under it.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
        for other in range(1, size):
            question = store.get(f"{own}/question/{other}").decode()
            store.set(f"{own}/answer/{other}", question)
        return own
    while True:
        name = store.get("start").decode()
        store.set(f"{name}/question/{rank}", own)
        while store.get("start").decode() == name:
            answer = f"{name}/answer/{rank}"
            if store.check([answer]) and store.get(answer).decode() == own:
                return name
            time.sleep(_POLL)


def leave(code: int) -> NoReturn:
    """End this process, whose work is done."""
    if all(name in os.environ for name in _NEEDED):
        # A thread of gloo that still holds a tensor aborts Python while that ends; seen once in
        # some thirty launches on busy cores (https://github.com/pytorch/pytorch/pull/179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


#: One process.
ALONE = World()


def _number(
    name: str, *, least: int = 0, below: int | None = None, absent: int | None = None
) -> int:
    text = os.environ.get(name)
    if text is None and absent is not None:
        return absent
    if text is None or not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}: {text!r} in the environment is not a number from {least} up")
    if below is not None and int(text) >= below:
        raise ConfigError(f"{name}: {text} in the environment is not below {below}")
    return int(text)


def _launch() -> str | None:
    """The job's id (--rdzv-id); where torchrun was given none, its process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    import psutil

    parent = psutil.Process(os.getppid())
    return f"{socket.gethostname()} {parent.pid} {parent.create_time():.2f}"

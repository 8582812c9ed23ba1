"""The processes of one command under torchrun: their ranks, and communication between them.

Without a launcher there is one process, and nothing here imports torch.
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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from qhdm.errors import ConfigError, DistributedError, PeerFailed, QhdmError, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

E = TypeVar("E", bound=QhdmError)
T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: For processes that hang; lost ones close their connections, which is noticed at once. Longer than
#: anything one process does alone: a batch of images on Aer can take hours.
_TIMEOUT = timedelta(hours=12)
#: Seconds between polls of the store.
_POLL = 0.02


@dataclass(frozen=True)
class World:
    """The processes that run one command together.

    Each computes its share; only rank 0 writes files and prints. All processes must call the
    collective methods in the same order.

    Attributes:
        rank: of this process, from 0 to `size` - 1.
        size: number of processes.
        local_rank, local_size: the same on this machine.
        launch: identifies this launch, also when the launcher restarts the processes; None
            without torchrun.
        restarts: how often torchrun may restart them (--max-restarts).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launch: str | None = None
    restarts: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """Read the variables that torchrun sets; one process if they are absent.

        Raises:
            ConfigError: a variable is not a number, or out of range.
        """
        if not _launched():
            return cls()
        size = _number("WORLD_SIZE", least=1)
        local_size = _number("LOCAL_WORLD_SIZE", least=1, default=size)
        return cls(
            rank=_number("RANK", below=size),
            size=size,
            local_rank=_number("LOCAL_RANK", below=local_size, default=0),
            local_size=local_size,
            launch=_launch(),
            restarts=_number("TORCHELASTIC_MAX_RESTARTS", default=0),
        )

    @property
    def first(self) -> bool:
        """Whether this process has rank 0, which writes files and prints."""
        return self.rank == 0

    def share(self, count: int, *, whole: int = 1) -> slice:
        """This process's contiguous share of `count` items.

        Shares consist of pieces of `whole` items, counted from the first; numbers of pieces differ
        by at most one.
        """
        pieces = -(-count // whole)
        start, end = (
            min(count, pieces * rank // self.size * whole) for rank in (self.rank, self.rank + 1)
        )
        return slice(start, end)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Connect the processes, by gloo between CPUs and NCCL between GPUs.

        Raises:
            DistributedError: they cannot reach each other.
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
                store=distributed.PrefixStore(_agree_on_name(store, rank, size), store),
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
        # Not after an error: the others may be gone then, and leaving closes everything.
        distributed.destroy_process_group()

    def add_up(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the processes, identical on each to the bit."""
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

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        return self.gather(value if self.first else None)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; every process gets them."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with self._contact():
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Let either all processes complete the body or none: an error in one ends all.

        The first process with an error raises it, the others raise `PeerFailed`.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = self.gather(error is not None)
        if True not in failed:
            return
        if error is not None and failed.index(True) == self.rank:
            raise error
        raise PeerFailed(f"process {failed.index(True)} failed")

    def common(self, error: E) -> E | PeerFailed:
        """The exception of this rank for an error that all share: only rank 0 reports it."""
        return error if self.first else PeerFailed(str(error))

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo and NCCL have no type of their own
            lost = DistributedError(
                f"lost contact with another process ({first_line(error)}); the last checkpoint is "
                "kept, and torchrun --max-restarts N resumes from it automatically"
            )
            raise self.common(lost) from None


#: One process.
ALONE = World()


def leave(code: int) -> NoReturn:
    """End this process, whose work is done."""
    if _launched():
        # A thread of gloo that still holds a tensor aborts Python as that ends; seen once in some
        # thirty launches on busy cores (https://github.com/pytorch/pytorch/pull/179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _agree_on_name(store: Store, rank: int, size: int) -> str:
    """A name for this start of the processes, the same for all of them and never used before.

    torchrun may keep one store over its restarts, with the addresses of processes that are gone,
    and its counts of restarts differ between machines that joined at different times. So rank 0
    makes up a name, and each of the others takes it only once rank 0 has answered under it.
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


def _launched() -> bool:
    return all(name in os.environ for name in _VARIABLES)


def _number(
    name: str, *, least: int = 0, below: int | None = None, default: int | None = None
) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}: {text!r} in the environment is not a number from {least} up")
    if below is not None and int(text) >= below:
        raise ConfigError(f"{name}: {text} in the environment is not below {below}")
    return int(text)


def _launch() -> str | None:
    """The id of the job (--rdzv-id), or the launcher's process where it was given none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    import psutil

    parent = psutil.Process(os.getppid())
    return f"{socket.gethostname()} {parent.pid} {parent.create_time():.2f}"

"""The one Ray cluster that all `kvfabric run` of a user use, and the locks by which they find and end it.

The first run starts a keeper (`cli/keeper.py`), a process that finds or starts Ray, tells its address, and ends,
and its own Ray with it, when no run is left. They meet in a folder of four files:

    start    locked by whoever starts or ends a keeper; the run hands its lock to the keeper, who has it until ready
    users    every run holds a shared lock for its whole life; a keeper that ends has the exclusive one
    address  what the keeper keeps; the keeper that wrote it has it locked for its whole life
    log      the keeper's output

    run      lock start, share users, then: address is locked -> take it
                                            else              -> start a keeper, wait until it is ready; unlock start
    keeper   Ray, address, unlock start; every half second: lock start and users or try later -> remove address, end

Both lock start before users, and a keeper has users only together with start. So no run shares users with a keeper
that is going, no two keepers start at once, and nobody waits for who waits for him. The kernel drops the locks of
the dead: a run that was killed uses nothing, a starter that was killed leaves start to its keeper, and the address
of a killed keeper is locked by nobody. A program's forked children inherit its lock: they are users too.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from ray_kvfabric.cli.knock import is_refused
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError

START_S = 60.0  # the keeper ends itself when it is not ready by then
GRACE_S = 5.0
_RETRY_S = 0.05
_SHOWN_LINES = 5


class Kept(NamedTuple):
    """What a keeper keeps: a Ray that it started and ends, or one that ran already.

    `auth_mode` is the RAY_AUTH_MODE that its clients need; Ray chooses it by itself only where it finds the address.
    """

    address: str
    is_own: bool
    auth_mode: str | None


def state_folder(runtime_dir: str | None) -> Path:
    """`runtime_dir`/kvfabric, or one in /tmp. Raises FabricError for a folder that others may look into."""
    folder = Path(runtime_dir, "kvfabric") if runtime_dir else Path(f"/tmp/kvfabric-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise FabricError(f"the folder {folder} cannot be made: {error.strerror}") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise FabricError(f"the folder {folder} must be yours alone: user {os.getuid()}, mode 0700")
    return folder


def join_cluster(folder: Path, *, own_only: bool = False) -> Kept:
    """The cluster that the runs of this folder use; it is kept until this process ends.

    `own_only`: not one that ran already. Raises FabricError.
    """
    start = _lock_start(folder)
    try:
        users = try_lock(folder / "users", fcntl.LOCK_SH)  # stays open until this process ends
        if users is None:
            raise FabricError(f"another program has {folder / 'users'} locked")
        kept = _living(folder) or _start_keeper(folder, start, own_only)
    finally:
        os.close(start)
    if own_only and not kept.is_own:
        raise FabricError(f"other runs use the Ray cluster at {kept.address}, which none of them started")
    return kept


def try_lock(path: Path, kind: int) -> int | None:
    """A descriptor that has the lock while it is open; None while others exclude it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, 0o1600)  # the sticky bit keeps who tidies temporary folders away
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def find_kept(folder: Path) -> Kept | None:
    """What the living keeper told; None without one. For whoever has `start` locked."""
    path = folder / "address"
    if not path.exists():
        return None
    unlocked = try_lock(path, fcntl.LOCK_SH)
    if unlocked is None:
        return Kept(**json.loads(path.read_text()))
    os.close(unlocked)
    path.unlink()
    return None


def publish(folder: Path, kept: Kept) -> None:
    """Tells what this process keeps from now on until it ends."""
    fresh = folder / "address.new"
    fd = try_lock(fresh, fcntl.LOCK_EX)  # stays open
    if fd is None:
        raise FabricError(f"another process has {fresh} locked")
    os.truncate(fd, 0)
    os.write(fd, json.dumps(kept._asdict()).encode())
    fresh.rename(folder / "address")


def try_end(folder: Path) -> bool:
    """Whether no run is left; then none can come in before this process ended, and nothing is kept any more."""
    start = try_lock(folder / "start", fcntl.LOCK_EX)  # both stay open when they were got
    if start is None:
        return False
    if try_lock(folder / "users", fcntl.LOCK_EX) is None:
        os.close(start)
        return False
    (folder / "address").unlink(missing_ok=True)
    return True


def _lock_start(folder: Path) -> int:
    deadline = Deadline.after(START_S + GRACE_S)
    while (start := try_lock(folder / "start", fcntl.LOCK_EX)) is None:
        if deadline.passed:
            raise FabricError(f"another process has {folder / 'start'} locked for more than {START_S:g} s")
        time.sleep(_RETRY_S)
    return start


def _living(folder: Path) -> Kept | None:
    """What is kept, once it is certain that somebody listens there: a keeper whose Ray is gone ends itself."""
    deadline = Deadline.after(GRACE_S)
    while (found := find_kept(folder)) is not None and is_refused(found.address):
        if deadline.passed:
            raise FabricError(f"nobody listens at {found.address}, and its keeper (see {folder / 'log'}) does not end")
        time.sleep(_RETRY_S)
    return found


def _start_keeper(folder: Path, start: int, own_only: bool) -> Kept:
    arguments = [str(folder), str(start), "own" if own_only else "any"]
    ready, told = os.pipe()
    with (folder / "log").open("w") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "ray_kvfabric.cli.keeper", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=log,
            pass_fds=(start,),
            start_new_session=True,
        )
    os.close(told)
    # The keeper closes its end of the pipe when it is ready, and the kernel does when it dies.
    select.select([ready], [], [], START_S + GRACE_S)
    os.close(ready)
    launcher.kill()  # it has ended long ago, or hangs
    launcher.wait()
    found = find_kept(folder)
    if found is None:
        raise FabricError(f"no Ray cluster could be started (it has {START_S:g} s): {_end_of(folder / 'log')}")
    return found


def _end_of(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{' | '.join(lines[-_SHOWN_LINES:]) or 'nothing was said'} (all of it is in {log})"

"""What file system a folder is on: databases need to know whether other machines see it, trials want room on it, and
folders names that it can hold. And how the files of a study are opened that it keeps there.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"^(nfs\d*|cifs|smb\w*|afs|9p|lustre|gpfs|beegfs|ceph|glusterfs|orangefs|pvfs2|panfs|wekafs|ncpfs|coda|ocfs2|gfs2"
    r"|fuse\.(sshfs|glusterfs|ceph\w*|juicefs|s3fs|gcsfuse|goofys|rclone|blobfuse\d*|davfs\d*|beegfs\w*|lustre\w*))$"
)

_LONGEST_BELOW = 100
"""Bytes of the longest path that is written below a trial's folder without the script's doing."""
_LEAST_BYTES = 1 << 20
_LEAST_FILES = 32
"""What a trial needs before its script has done anything: folders, logs, its configuration."""


def open_own(path: Path | str, flags: int, mode: int = 0o600) -> int:
    """Open a file that a study keeps in its folder, to write to it; it is made if need be. Returns the descriptor.

    Where a symbolic link has its name, the link is replaced: a study from elsewhere must not say which file of ours is
    written.

    Args:
        flags: besides those that all of these files have.
        mode: rights of a file that is made.

    Raises:
        OSError: if it cannot be opened.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except OSError as problem:
        if problem.errno != errno.ELOOP or not os.path.islink(path):
            raise
    os.unlink(path)
    return os.open(path, flags, mode)


def shortage(path: Path) -> str | None:
    """What the file system has too little of for another trial to begin; None if it has enough, or does not tell."""
    try:
        room = os.statvfs(path)
    except (AttributeError, OSError):
        return None
    if not room.f_blocks:  # some that are mounted from elsewhere say 0 to everything
        return None
    is_root = os.geteuid() == 0  # for whom some is kept
    if (room.f_bfree if is_root else room.f_bavail) * room.f_frsize < _LEAST_BYTES:
        return "the disk is full"
    # Some file systems do not count files.
    if room.f_files and (room.f_ffree if is_root else room.f_favail) < _LEAST_FILES:
        return "the disk can take no more files"
    return None


def name_too_long(folder: Path) -> str | None:
    """Which part of a folder's path is longer than the file system allows; None if none is, or it does not tell.

    Args:
        folder: absolute; need not exist.
    """
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    try:
        longest_name, longest_path = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
    except (OSError, ValueError):
        return None
    for name in folder.parts:
        size = len(os.fsencode(name))
        if 0 < longest_name < size:
            return f"a name may have {longest_name} bytes, and {name[:60]}... has {size}"
    size = len(os.fsencode(folder))
    if 0 < longest_path < size + _LONGEST_BELOW:
        return f"a path may have {longest_path} bytes with what is below it, and its own has {size}"
    return None


def network_filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type (``nfs4``, ``lustre``, ...) of the network file system that ``path`` is on.

    Args:
        path: need not exist.
        mounts: table of mounts in the format of ``/proc/self/mountinfo``, see proc(5).

    Returns:
        None if the file system is local, or if the system does not tell.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    above = {path.resolve(), *path.resolve().parents}
    # Of two mounts on one point the later one is seen.
    kind = {len(m[0].parts): m[1] for m in map(_mount, lines) if m is not None and m[0] in above}
    nearest = kind[max(kind)] if kind else ""
    return nearest if _NETWORK.match(nearest) else None


def _mount(line: str) -> tuple[Path, str] | None:
    """Mount point and type of one line."""
    before, _, after = line.partition(" - ")
    fields, kind = before.split(" "), after.split(" ")[0]
    if len(fields) < 5 or not kind:
        return None
    # Blanks and the like are written as octal numbers.
    point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
    return Path(point), kind

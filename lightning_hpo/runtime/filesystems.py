"""What kind of file system a folder is on: databases need to know whether other machines see it too."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"^(nfs\d*|cifs|smb\w*|afs|9p|lustre|gpfs|beegfs|ceph|glusterfs|orangefs|pvfs2|panfs|wekafs|ncpfs|coda|ocfs2|gfs2"
    r"|fuse\.(sshfs|glusterfs|ceph\w*|juicefs|s3fs|gcsfuse|goofys|rclone|blobfuse\d*|davfs\d*|beegfs\w*|lustre\w*))$"
)


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

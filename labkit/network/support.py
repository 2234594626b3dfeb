"""What this machine allows, and what to say where it allows no lab."""

from __future__ import annotations

import errno
import os
import sys


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def why_unavailable(failure: OSError | None = None) -> tuple[str, str]:
    """The cause for which this machine gives no namespaces, and the way out.

    Args:
        failure: the kernel's error, where it was tried.

    Returns:
        cause and way out, a sentence each. The cause is found in the kernel's settings, not guessed from the
        error alone: the same EPERM comes from three different locks.
    """
    if sys.platform != "linux":
        import platform

        return (
            f"this is {platform.system()}, and hosts with a kernel's network are Linux network namespaces",
            "run the book on Linux: in a virtual machine, WSL2, a container, or by its Binder link",
        )
    said = f" (the kernel says: {failure.strerror})" if failure else ""
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        return (
            f"user namespaces are turned off: user.max_user_namespaces is 0{said}",
            "an administrator turns them on with: sudo sysctl -w user.max_user_namespaces=10000",
        )
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        return (
            f"only root may make user namespaces: kernel.unprivileged_userns_clone is 0{said}",
            "an administrator allows them with: sudo sysctl -w kernel.unprivileged_userns_clone=1",
        )
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and os.geteuid() != 0:
        return (
            f"AppArmor takes the rights away from new user namespaces (Ubuntu 23.10 and later){said}",
            "an administrator allows them with: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    if failure is not None and failure.errno in (errno.ENOSPC, errno.EUSERS):
        return (
            f"no namespace is left to this user: a limit below user.max_*_namespaces is reached{said}",
            "close other labs and containers, or raise it with: sudo sysctl -w user.max_user_namespaces=10000",
        )
    if "KUBERNETES_SERVICE_HOST" in os.environ:  # Binder and JupyterHub among others
        return (
            f"this cluster's security profile forbids new namespaces{said}",
            "who runs the cluster can allow them: docs/teachers.md; or run the book on a Linux machine of your own",
        )
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return (
            f"this container's security profile forbids new namespaces{said}",
            "start it with: docker run --security-opt seccomp=unconfined …",
        )
    return (
        f"this process may not make namespaces{said}",
        "see `labkit doctor`; in a sandbox or container, allow unshare(2) with user and network namespaces",
    )

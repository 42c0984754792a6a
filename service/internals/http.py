"""Undocumented names of uvicorn.

``Protocol`` is extended through its methods ``connection_made``, ``data_received``, ``connection_lost``,
``send_400_response`` and ``timeout_keep_alive_handler`` and its attributes ``conn``, ``loop`` and ``transport``;
``uvicorn.Server`` through ``startup``, ``started`` and ``capture_signals``.
"""

from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

__all__ = ["Protocol"]

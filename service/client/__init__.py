"""A client of the service over HTTP, blocking and asynchronous; it imports nothing of the server.

The flows are written once, as generators (`flows`, `following`): they yield what is to be done (`effects`) and are sent
the outcome. `Client` and `AsyncClient` do it with httpx.
"""

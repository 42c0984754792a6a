"""Every private or undocumented name of other libraries that the service uses, one module a library.

tests/service/test_internals.py resolves each, and finds those that are used elsewhere.
"""

"""The console: pages for browsers over the service's own calls, and nothing else of the service.

`make_console` gives an ASGI application. It speaks to the service as any other caller does: each request carries the
token of the person who has signed in.
"""

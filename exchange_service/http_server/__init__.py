"""The service's methods over HTTP, for browsers and scripts: guards, then the Connect protocol, then the console."""

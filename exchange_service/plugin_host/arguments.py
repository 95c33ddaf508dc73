"""What the service tells the main program of a plugin's process by its arguments, and the first byte of its answer."""

# Instead of a socket: write the manifest, or a newer one.
WRITE_MANIFEST, REFRESH_MANIFEST = "--manifest", "--refresh"
# A plugin that may have a newer manifest later, and a reason in place of a manifest.
REFRESHES, REJECTED = b"+", b"!"

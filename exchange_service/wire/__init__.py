"""Translates the model to messages and bytes, and back.

The cache keeps bytes, feeds pass bytes on, and replies carry them. A protobuf message is the concatenation of its
fields, so a reply is the stored balance's bytes behind a tag and a length, and the few fields that change per call.
"""

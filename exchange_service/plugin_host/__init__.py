"""Plugins in processes of their own.

The service starts a keeper, the keeper starts the program that runs the plugin, and the service speaks gRPC with that
over a Unix socket:

    reaper.py       ends everything that the plugin has started when the service or the program ends
    main.py         what runs in the process: one plugin, its sessions, and the calls that the service makes
    launch.py       how a process is started: its environment, its limits, its folder
    supervisor.py   keeps a process running: its health, its memory, its restarts
    client.py       what the service calls in the place of a plugin
    protocol.py     the messages between the two
    discovery.py    the registry of all installed plugins, with what strangers say of themselves read in a process apart
"""
